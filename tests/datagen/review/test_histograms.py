"""Counts add up however the samples are grouped, and the pictures depend on nothing else."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from datagen.dataset import statistics as bins
from datagen.dataset.records import CodecRecord, Crop, DrawnSample, Orientation
from datagen.dataset.statistics import (
    Counts,
    LatentStatistics,
    Statistics,
    StatisticsCollector,
    quantile,
)
from datagen.degradation.draw import draw_degradation
from datagen.degradation.settings import DegradationSettings
from datagen.review.pictures import choose_samples, render_histograms, render_preview
from datagen.samples.buckets import Bucket


def _drawn(seed: int, bucket: str = "64x96") -> DrawnSample:
    rng = np.random.default_rng(seed)
    lq = draw_degradation(DegradationSettings(), rng)
    return DrawnSample(
        key=f"{seed % 7:020x}-{seed // 7:02d}",
        source=f"/photos/{seed}.jpg",
        seed=0,
        bucket=bucket,
        crop=Crop(left=0, top=3, width=500, height=400),
        orientation=Orientation(quarter_turns=seed % 4, flip=seed % 2 == 0),
        scale=lq.scale,
        lq=lq,
        neg=draw_degradation(DegradationSettings(), rng, scale=1.5),
    )


def _counts(seeds: range) -> Counts:
    codec = CodecRecord(kind="dct8", fingerprint="", channels=1, downsample=8)
    collector = StatisticsCollector(codec)
    for seed in seeds:
        drawn = _drawn(seed, ("64x96", "96x64", "80x80")[seed % 3])
        collector.add(np.zeros((1, 2, 2)), drawn, photo_side=100 * seed)
    return collector.result().counts


def _statistics(counts: Counts, channels: int = 4) -> Statistics:
    latent = LatentStatistics(
        mean=tuple(-0.1 * n for n in range(channels)), std=(1.0,) * channels, positions=9
    )
    return Statistics(latent=latent, counts=counts)


def test_counts_add_up_however_samples_are_grouped() -> None:
    whole = _counts(range(60))
    for cut in (1, 20, 59):
        assert _counts(range(cut)).plus(_counts(range(cut, 60))) == whole
    assert whole.plus(Counts()) == whole
    assert sum(whole.scale) == sum(whole.photo_side) == sum(whole.buckets.values()) == 60
    assert sum(whole.jpeg_quality) == 60
    assert sum(whole.gaussian_sigma) + sum(whole.poisson_scale) == 60
    drawn = [_drawn(seed).scale for seed in range(60)]
    expected, _ = np.histogram(drawn, bins=[*bins.SCALE, np.inf])
    assert whole.scale == tuple(expected)


def test_values_beyond_the_bins_are_counted() -> None:
    codec = CodecRecord(kind="dct8", fingerprint="", channels=1, downsample=8)
    collector = StatisticsCollector(codec)
    for side in (0, 127, 128, 10**9):
        collector.add(np.zeros((1, 2, 2)), _drawn(1), photo_side=side)
    counts = collector.result().counts
    assert counts.photo_side[:2] == (2, 1) and counts.photo_side[-1] == 1


def test_latents_add_up_as_float64_of_each_stored_value() -> None:
    """Of several samples of two sizes, to the last bit."""
    codec = CodecRecord(kind="dct8", fingerprint="", channels=5, downsample=8)
    collector, rng = StatisticsCollector(codec), np.random.default_rng(0)
    total, squares = np.zeros(5), np.zeros(5)
    for size in ((7, 9), (2, 2), (7, 9)):
        latent = rng.normal(0, 3, (5, *size)).astype(np.float16)
        latent[0, 0, 0] = 65504
        collector.add(latent, _drawn(1), photo_side=100)
        exact = latent.astype(np.float32).reshape(5, -1)
        total += exact.sum(axis=1, dtype=np.float64)
        squares += np.einsum("cp,cp->c", exact, exact, dtype=np.float64)
    found = collector.result()
    assert found.latent_sum == tuple(total) and found.latent_square_sum == tuple(squares)
    assert found.positions == 2 * 63 + 4


def test_quantiles_are_those_of_the_values_and_not_the_edges_of_bins() -> None:
    drawn = np.random.default_rng(0).uniform(1, 10, 20_000)
    counts = np.histogram(drawn, [*bins.SCALE, np.inf])[0].tolist()
    for part in (0.05, 0.5, 0.95):
        found = quantile(bins.SCALE, counts, part)
        assert abs(found - np.quantile(drawn, part)) < 0.02
    assert quantile((0, 10, 20), (0, 0, 4), 0.5) == 20


def test_equal_counts_give_equal_pictures() -> None:
    first = render_histograms(_statistics(_counts(range(30))))
    assert first == render_histograms(_statistics(_counts(range(30))))
    assert first != render_histograms(_statistics(_counts(range(31))))
    image = Image.open(io.BytesIO(first))
    assert min(image.size) > 1000 and set(image.info) == {"dpi"}, "no times, no programs"


@pytest.mark.parametrize("channels", [1, 192])
def test_a_dataset_without_noise_or_with_many_buckets_can_be_rendered(channels: int) -> None:
    many = {f"{64 + 32 * n}x64": n + 1 for n in range(80)}
    render_histograms(_statistics(Counts(scale=(3, *[0] * 62), buckets=many), channels))


def test_a_preview_depends_on_its_rows_alone() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for seed, name in enumerate(("64x96", "96x64", "32x32")):
        bucket = Bucket.from_name(name)
        noise = rng.integers(0, 256, (3, bucket.height, bucket.width, 3), dtype=np.uint8)
        drawn = _drawn(seed, name).model_copy(update={"source": f"/photos/写真 $x^{seed}.jpg"})
        rows.append((drawn, dict(zip(("hq", "lq", "neg"), noise, strict=True))))
    first = render_preview(rows)
    assert first == render_preview(rows) != render_preview(rows[:2])
    assert set(Image.open(io.BytesIO(first)).info) == {"dpi"}


def test_preview_shows_different_photos_first() -> None:
    keys = [_drawn(seed).key for seed in (0, 7, 14, 1, 8, 2)]
    chosen = choose_samples(keys, 4)
    assert [key[19:] for key in chosen] == ["0-00", "1-00", "2-00", "0-01"]
    assert len(choose_samples(keys, 99)) == 6
