"""Evaluating photos over the network's time alone: at two scales, in 1, 2 and 4 steps.

    python -m tests.benchmarks.evaluation MODEL PHOTOS [--photos 100] [--metrics niqe ...]

Photos are read and degraded before. The network alone restores each of them; the evaluation does so
too, makes bicubic pictures, and measures PSNR and SSIM, and the metrics that are named, of all.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice

import numpy as np

from training.evaluation.baselines import baseline_method
from training.evaluation.metrics.catalog import find_metrics
from training.evaluation.photos import degraded_photos
from training.evaluation.scores import score
from training.evaluation.variants import Variant
from training.inference.upscaler import Upscaler
from training.settings.evaluation import EvaluationSettings, Interpolation

SCALES, STEPS = (2.0, 4.0), (1, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("photos")
    parser.add_argument("--photos", dest="count", type=int, default=100)
    parser.add_argument("--metrics", nargs="*", default=[])
    options = parser.parse_args()
    settings = EvaluationSettings(photos=options.photos, scales=SCALES, metrics=options.metrics)
    upscaler = Upscaler.from_pretrained(options.model)
    metrics = find_metrics(settings.metrics, settings.conventions())
    ours = Variant(upscaler.method, options.model).methods(upscaler, STEPS)
    bicubic = baseline_method(Interpolation(kind="bicubic"), SCALES[0])
    network = evaluation = 0.0
    for scale in SCALES:
        found = degraded_photos(settings, upscaler.config.degradation, scale)
        photos = list(islice(found, options.count))
        ours[0].restore(photos[0])  # warms up
        # In turn, so that a busy machine slows both.
        for part in np.array_split(np.arange(len(photos)), 10):
            some = [photos[i] for i in part]
            start = time.perf_counter()
            for method in ours:
                for photo in some:
                    method.restore(photo)
            middle = time.perf_counter()
            score(some, [bicubic, *ours], scale, metrics)
            network += middle - start
            evaluation += time.perf_counter() - middle
        print(f"x{scale:g}: {len(photos)} photos", flush=True)
    print(f"network {network:.1f} s, evaluation {evaluation:.1f} s: {evaluation / network:.3f}")


if __name__ == "__main__":
    main()
