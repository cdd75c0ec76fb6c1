"""What a build of a dataset did in this run, and what the dataset holds now, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rich import filesize

from datagen.dataset.layout import PREVIEW, REJECTED
from datagen.dataset.manifest import Manifest
from datagen.io import storage
from pipelines.terminal.text import counted, duration


@dataclass(frozen=True)
class BuildReport:
    """One run that completed a dataset."""

    dataset: str
    before: Manifest | None
    """The manifest that the run added to."""
    after: Manifest
    new_photos: int
    """Photos that samples were planned of, by this run or one before it that was stopped."""
    samples: int
    """Made by this run alone."""
    bytes: int
    """Of these samples."""
    shards_seconds: float
    seconds: float
    mlflow: str | None
    """Where the dataset was logged."""

    @property
    def added(self) -> int:
        return self.after.num_samples - (self.before.num_samples if self.before else 0)

    @property
    def left_out(self) -> Counter[str]:
        """Photos left out since the manifest before, by reason."""
        earlier = self.before.rejected.by_reason if self.before else {}
        return Counter(self.after.rejected.by_reason) - Counter(earlier)

    def message(self) -> str:
        """`40 samples added, 3 photos left out`."""
        parts = [f"{counted(self.added, 'sample')} added"] if self.added else []
        if self.left_out:
            parts.append(f"{counted(self.left_out.total(), 'photo')} left out")
        return ", ".join(parts) or "nothing new"

    def markdown(self) -> str:
        """This run, then the dataset, on a page."""
        after, codec = self.after, self.after.codec
        before = f"`{self.before.digest}`" if self.before else "none: the dataset is new"
        speed = self.samples / max(self.shards_seconds, 1e-3)
        lines = [
            f"# {self.dataset}",
            "",
            f"**{self.message()}** in {duration(self.seconds)}.",
            "",
            "## This run",
            "",
            "| | |",
            "|---|---|",
            f"| new photos | {self.new_photos} |",
            f"| samples made | {self.samples}, {filesize.decimal(self.bytes)} |",
            f"| speed | {speed:.1f} samples/s for {duration(self.shards_seconds)} |",
            f"| digest before | {before} |",
            f"| digest after | `{after.digest}` |",
            f"| MLflow run | {self.mlflow or 'not logged'} |",
            *_reasons("left out by this run", self.left_out),
            "",
            "## The dataset now",
            "",
            f"**{counted(after.num_samples, 'sample')}** in {counted(after.num_shards, 'shard')}, "
            f"{filesize.decimal(after.bytes)}; "
            f"{counted(after.rejected.count, 'photo')} left out.",
            "",
            f"- recipe `{after.recipe_digest}`",
            f"- codec {codec.kind}, {codec.channels} channels at 1/{codec.downsample} of the size",
            f"- preview `{storage.join(self.dataset, PREVIEW)}`",
        ]
        if after.rejected.count:
            lines.append(f"- left out: `{storage.join(self.dataset, REJECTED)}`")
            lines += _reasons("left out of the dataset", after.rejected.by_reason)
        return "\n".join(lines)


def by_count(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """Reasons and how many photos were left out for them, largest first."""
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))


def _reasons(title: str, reasons: Mapping[str, int]) -> list[str]:
    if not reasons:
        return []
    rows = [f"| {reason} | {count} |" for reason, count in by_count(reasons)]
    return ["", f"| {title} | photos |", "|---|---:|", *rows]
