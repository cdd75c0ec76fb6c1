"""What `flowmapsr dataset` prints: contents of a dataset, its faults, the next command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import filesize

from datagen.dataset.layout import HISTOGRAMS, MANIFEST, MANIFESTS, PREVIEW, REJECTED
from pipelines.terminal.process_edge import VerbResult
from pipelines.terminal.text import command, counted, table, yaml_lines

if TYPE_CHECKING:
    from datagen.build.survey import Survey
    from datagen.dataset.manifest import Manifest
    from datagen.review.inspect_sample import InspectedSample
    from datagen.review.recompute import NotMade
    from datagen.review.verify import DatasetIssue

_SHARDS = 10
"""Listed at most of those that could not be made again."""


def built(dataset: str, manifest: Manifest, found: Survey, *, recipe: str | None) -> VerbResult:
    """A complete dataset, what this command `found` of it before, and a recipe to train with."""
    from training.tracking.store.dataset_links import EXPERIMENT

    how = "is complete" if found.complete is None else "was complete already"
    folder = dataset.rstrip("/")
    path = f"{folder}/{MANIFEST}"
    left_out = counted(manifest.rejected.count, "image")
    left_out += f" (see {REJECTED})" if manifest.rejected.count else ""
    lines = [
        f"The dataset {how}: {_contents(manifest)}.",
        f"  manifest  {path}",
        f"  preview   {folder}/{PREVIEW}",
        f"  left out  {left_out}",
    ]
    if other_files := found.listing.other_files():
        lines.append(f"  no photos {other_files}")
    lines.append(f"  review    {command('review', EXPERIMENT)}")
    added = manifest.num_samples - (found.manifest.num_samples if found.manifest else 0)
    if found.manifest is not None and added:
        lines.append(f"  added     {counted(added, 'sample')}")
    gone, changed = sorted(found.missing), sorted(found.changed)
    if gone:
        lines.append(
            f"  missing   {counted(len(gone), 'photo')} not found any more, such as "
            f"{', '.join(gone[:3])}; their samples stay"
        )
    if changed:
        lines.append(
            f"  changed   {counted(len(changed), 'photo')}, such as {', '.join(changed[:3])}; "
            "samples of the old content stay"
        )
    lines += _next(recipe, path)
    result = {"output": dataset, "manifest": path, "added": added, "gone": gone, "changed": changed}
    result["passed_over"] = {item.kind: item._asdict() for item in found.listing.passed_over}
    return VerbResult({**result, **_summary(manifest)}, lines)


def inspected(dataset: str, manifest: Manifest, kept: Sequence[str] | None) -> VerbResult:
    """What a dataset holds; `kept` are the digests of all states in which it was finished, None
    if they cannot be listed."""
    counts: Counter[tuple[str, str]] = Counter()
    for shard in manifest.shards:
        counts[shard.bucket, shard.split] += shard.num_samples
    rows = [(bucket, split, str(count)) for (bucket, split), count in sorted(counts.items())]
    codec = manifest.codec
    states = "not known" if kept is None else counted(len(kept), "finished state")
    lines = [
        f"{dataset}: {_contents(manifest)}.",
        *(
            []
            if codec is None
            else [
                f"codec {codec.kind}, {codec.channels} channels at 1/{codec.downsample} of the size"
            ]
        ),
        f"fields: {_fields(manifest.recipe)}",
        *(f"pairs of {pairs.hq} and {pairs.lq}" for pairs in manifest.pairs),
        f"digest {manifest.digest}",
        f"kept for trainings: {states}, in {dataset}/{MANIFESTS}",
        *table(("bucket", "split", "samples"), rows),
        *table(("drawn for LQ", "from 5%", "median", "to 95%"), _quantiles(manifest)),
        f"pictures: {dataset}/{PREVIEW}, {dataset}/{HISTOGRAMS}",
        f"left out: {counted(manifest.rejected.count, 'image')}",
        *(f"  {count} x {reason}" for reason, count in manifest.rejected.by_reason.items()),
        f"Next: {command('dataset', 'verify', dataset)}",
    ]
    result = {"uri": dataset, **_summary(manifest), "recipe": manifest.recipe}
    result["kept"] = kept
    result["stats"] = manifest.stats.model_dump(mode="json")
    result["buckets"] = [
        {"bucket": bucket, "split": split, "num_samples": count}
        for (bucket, split), count in sorted(counts.items())
    ]
    return VerbResult(result, lines)


def _fields(recipe: dict[str, Any]) -> str:
    """What a sample holds; a dataset of an older version has no settings of it."""
    latents = recipe.get("latents", ["hq", "lq", "neg"])
    parts = [f"latents {', '.join(latents)}"] if latents else []
    for name, default in (("hq", "jpeg"), ("lq", "none")):
        if (stored := recipe.get(f"{name}_pixels", default)) != "none":
            parts.append(f"{name.upper()} pixels ({stored})")
    return "; ".join(parts)


def sample_inspected(dataset: str, sample: InspectedSample, files: Sequence[str]) -> VerbResult:
    """One sample: its pictures and all values drawn for it."""
    drawn = sample.drawn.model_dump(mode="json")
    lines = [
        f"{sample.drawn.key} in {sample.shard}",
        *yaml_lines(drawn),
        *(f"wrote {uri}" for uri in files),
    ]
    result = {"uri": dataset, "shard": sample.shard, "sample": drawn, "files": list(files)}
    return VerbResult(result, lines)


def _quantiles(manifest: Manifest) -> list[tuple[str, ...]]:
    """Rows of the 5%, 50% and 95% quantiles, from counts in bins and the bounds of the recipe."""
    import numpy as np

    from datagen.dataset import statistics as bins
    from datagen.degradation.settings import DegradationSettings, paths

    chain = DegradationSettings.model_validate(manifest.recipe["degradation"])
    steps = [step for path in paths(chain.operations) for step in path]
    counts = manifest.stats.counts
    drawn: dict[str, tuple[Sequence[float], Sequence[int], Sequence[Any], str]] = {
        "scale": (bins.SCALE, counts.scale, [] if manifest.pairs else [chain], "scale"),
        "Gaussian sigma": (bins.GAUSSIAN_SIGMA, counts.gaussian_sigma, steps, "gaussian_sigma"),
        "Poisson scale": (bins.POISSON_SCALE, counts.poisson_scale, steps, "poisson_scale"),
        "JPEG quality": (bins.JPEG_QUALITY, counts.jpeg_quality, steps, "quality"),
        "photo's shorter side": (bins.PHOTO_SIDE, counts.photo_side, [], ""),
    }
    rows = []
    for name, (edges, found, settings, field) in drawn.items():
        if sum(found):
            values = [bins.quantile(edges, found, part) for part in (0.05, 0.5, 0.95)]
            if limits := [getattr(step, field) for step in settings if hasattr(step, field)]:
                values = np.clip(values, np.min(limits), np.max(limits)).tolist()
            rows.append((name, *(f"{value:.3g}" for value in values)))
    return rows


def verified(
    dataset: str,
    faults: Sequence[DatasetIssue],
    *,
    recipe: str | None,
    without_photo: Sequence[NotMade] | None = None,
) -> VerbResult:
    """How a dataset compares with its manifest, and the recipe to train with; `without_photo` are
    the shards of which no sample could be made again, None if none was to be."""
    result: dict[str, Any] = {"ok": not faults, "faults": [fault._asdict() for fault in faults]}
    if without_photo is not None:
        result["not_recomputed"] = [shard._asdict() for shard in without_photo]
    if faults:
        lines = [f"{dataset}: {counted(len(faults), 'fault')}"]
        lines += [f"  {fault.where}: {fault.what}" for fault in faults]
        return VerbResult(result, lines, ok=False)
    lines = [f"{dataset}: every part matches its manifest.", *_next(recipe, dataset)]
    if without_photo is not None:
        lines[1:1] = _made_again(without_photo)
    return VerbResult(result, lines)


def _made_again(without_photo: Sequence[NotMade]) -> list[str]:
    same = "One sample of each shard was made again and is the same"
    if not without_photo:
        return [f"{same}."]
    count = counted(len(without_photo), "shard")
    lines = [f"{same}; not of {count}, whose photos are not what they were:"]
    for shard, missing in without_photo[:_SHARDS]:
        others = f", and so on for {len(missing) - 1} more" if len(missing) > 1 else ""
        lines.append(f"  {shard}: {missing[0]}{others}")
    rest = len(without_photo) - _SHARDS
    return [*lines, f"  and {rest} more (--json lists all)"] if rest > 0 else lines


def _next(recipe: str | None, dataset: str) -> list[str]:
    """The training that may follow; no recipe trains on pixels yet."""
    if recipe is None:
        return []
    return [f"Next: {command('train', recipe, f'manifest={dataset}', 'output=RUN')}"]


def _contents(manifest: Manifest) -> str:
    samples, shards = counted(manifest.num_samples, "sample"), counted(manifest.num_shards, "shard")
    return f"{samples} in {shards}, {filesize.decimal(manifest.bytes)}"


def _summary(manifest: Manifest) -> dict[str, Any]:
    fields = {"recipe_digest", "codec", "num_samples", "num_shards", "bytes", "rejected"}
    return {"digest": manifest.digest, **manifest.model_dump(mode="json", include=fields)}
