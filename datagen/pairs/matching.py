"""Finds the LQ of every HQ by their names or a table; opens no image."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.pair_settings import PairSettings
from datagen.photos.source_file import Rejection, SourceFile

NO_LQ, NO_HQ = "no LQ for this HQ", "no HQ for this LQ"


@dataclass(frozen=True)
class MatchedPairs:
    """HQ and LQ in the order of the HQ's URIs, and the files that are left alone."""

    pairs: tuple[tuple[SourceFile, SourceFile], ...]
    rejected: tuple[Rejection, ...] = ()


def match_pairs(
    settings: PairSettings, *, hq: Sequence[SourceFile], lq: Sequence[SourceFile]
) -> MatchedPairs:
    """Matches the files listed of `settings.hq` with those of `settings.lq`.

    A file without its other half is a rejection; with `suffix`, files of other suffixes are passed
    over, and with `csv` those that the table does not name.

    Raises:
        FlowmapsrError: no pair at all, two files for one place, or the table is unusable.
    """
    if settings.csv is not None:
        pairs, rejected = _by_table(settings, settings.csv, hq, lq), list[Rejection]()
    else:
        hq_suffix, lq_suffix = settings.hq_suffix, settings.lq_suffix
        shared = settings.hq == settings.lq
        # In one folder the longer suffix decides: `0801x4` ends with an empty suffix, too.
        others = {"hq": lq_suffix * (len(lq_suffix) > len(hq_suffix)), "lq": ""}
        others["lq"] = hq_suffix * (len(hq_suffix) > len(lq_suffix))
        hq_by = _by_stem(hq, settings.hq, hq_suffix, not_suffix=others["hq"] * shared)
        lq_by = _by_stem(lq, settings.lq, lq_suffix, not_suffix=others["lq"] * shared)
        pairs = [(file, lq_by[stem]) for stem, file in hq_by.items() if stem in lq_by]
        rejected = [Rejection(hq_by[stem].uri, NO_LQ) for stem in hq_by.keys() - lq_by.keys()]
        rejected += [Rejection(lq_by[stem].uri, NO_HQ) for stem in lq_by.keys() - hq_by.keys()]
    if not pairs:
        raise FlowmapsrError(
            f"pairs: no file of {settings.hq} ({len(hq)} photos) matches one of {settings.lq} "
            f"({len(lq)} photos) by match={settings.match}, hq_suffix={settings.hq_suffix!r}, "
            f"lq_suffix={settings.lq_suffix!r}; give the suffixes that their names end with"
        )
    return MatchedPairs(tuple(sorted(pairs)), tuple(sorted(rejected)))


def _by_stem(
    files: Sequence[SourceFile], root: str, suffix: str, *, not_suffix: str
) -> dict[str, SourceFile]:
    """Files by their path without suffix and extension."""
    found: dict[str, SourceFile] = {}
    for file in files:
        path = PurePosixPath(_below(file.uri, root))
        if not path.stem.endswith(suffix) or (not_suffix and path.stem.endswith(not_suffix)):
            continue
        stem = str(path.with_name(path.stem.removesuffix(suffix) or path.name))
        if stem in found:
            raise FlowmapsrError(
                f"pairs: two photos for one place: {found[stem].uri} and {file.uri}; remove one"
            )
        found[stem] = file
    return found


def _by_table(
    settings: PairSettings, table: str, hq: Sequence[SourceFile], lq: Sequence[SourceFile]
) -> list[tuple[SourceFile, SourceFile]]:
    by_path = {
        "hq": {_below(file.uri, settings.hq): file for file in hq},
        "lq": {_below(file.uri, settings.lq): file for file in lq},
    }
    pairs: list[tuple[SourceFile, SourceFile]] = []
    first: dict[tuple[str, str], int] = {}
    for line, row in _rows(table):
        for column, files in by_path.items():
            name = row[column]
            if name not in files:
                root = getattr(settings, column)
                raise FlowmapsrError(f"{table}, line {line}: {column} {name!r} is not in {root}")
            before = first.setdefault((column, name), line)
            if before != line:
                other = "HQ" if column == "lq" else "LQ"
                raise FlowmapsrError(
                    f"{table}, line {line}: two {other} for one {column.upper()}: {name!r} is in "
                    f"line {before}, too; remove one"
                )
        pairs.append((by_path["hq"][row["hq"]], by_path["lq"][row["lq"]]))
    return pairs


def _rows(table: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and content of each line that names a pair."""
    try:
        text = storage.read_bytes(table).removeprefix(codecs.BOM_UTF8).decode()
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        if not {"hq", "lq"} <= set(reader.fieldnames or ()):
            raise FlowmapsrError(
                f"{table}: its first line must name the columns hq and lq, separated by a comma; "
                f"it names {', '.join(reader.fieldnames or ()) or 'none'}"
            )
        for row in reader:
            if not (row["hq"] and row["lq"]):
                raise FlowmapsrError(f"{table}, line {reader.line_num}: give both hq and lq")
            yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise FlowmapsrError(f"{table}: not a table of UTF-8 text ({error})") from error


def _below(uri: str, root: str) -> str:
    """The path inside a source; of an archive, that of the member."""
    return uri.removeprefix(root.rstrip("/")).lstrip("/#")
