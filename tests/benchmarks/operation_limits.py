"""Compares each operation of the degradation with the limits of the machine.

The limits are measured in the same run: bytes moved at the speed of a large copy, multiplications
at that of a large matrix product, random bits at that of the raw generator, the codec by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import skimage.data

from datagen.degradation import kernels, noise
from datagen.degradation.apply import degrade_small
from datagen.degradation.kernels import Filter
from datagen.degradation.parameters import BlurParams, DegradationParams, JpegParams
from datagen.degradation.resample import blurred_and_resized, resized, resized_and_blurred

_SIDE, _SMALL = 1024, 256
_FULL = _SIDE * _SIDE * 3
"""Values of the large image; the small one, at scale 4, has a sixteenth."""


@dataclass(frozen=True)
class Machine:
    """Limits of one core, per second."""

    bytes: float
    flops: float
    random_bytes: float


@dataclass(frozen=True)
class Case:
    name: str
    run: Callable[[], object]
    limit: float
    """Seconds."""
    why: str


def print_limits() -> None:
    """Prints the table of operations at 1024², scale 4."""
    machine = _measure_machine()
    print(
        f"\nOperations at {_SIDE}², scale 4, against the limits of one core: "
        f"{machine.bytes / 1e9:.1f} GB/s moved, {machine.flops / 1e9:.0f} GFLOP/s, "
        f"{machine.random_bytes / 1e9:.1f} GB/s of random bits\n"
    )
    print("| operation | ms | limit, ms | what the limit is | share |")
    print("|---|---|---|---|---|")
    for case in _cases(machine):
        spent = _best(case.run)
        print(
            f"| {case.name} | {spent * 1e3:.2f} | {case.limit * 1e3:.2f} | {case.why} "
            f"| {case.limit / spent:.0%} |",
            flush=True,
        )


def _best(run: Callable[[], object], *, repeats: int = 9) -> float:
    """Least CPU seconds of a call: the one least disturbed by other load."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def _measure_machine() -> Machine:
    large = np.ones(16 * 2**20, np.float32)
    copy = np.empty_like(large)
    square = np.random.default_rng(0).random((768, 768), dtype=np.float32)
    product = np.empty_like(square)
    generator = np.random.SFC64(0)
    return Machine(
        bytes=2 * large.nbytes / _best(lambda: np.copyto(copy, large)),
        flops=2 * 768**3 / _best(lambda: np.matmul(square, square, out=product)),
        random_bytes=8 * 2**20 / _best(lambda: generator.random_raw(2**20)),
    )


def _cases(machine: Machine) -> list[Case]:
    photo = cv2.resize(skimage.data.astronaut(), (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
    pixels = photo.astype(np.float32)
    small = cv2.resize(pixels, (_SMALL, _SMALL), interpolation=cv2.INTER_AREA)
    return [
        *_blurs(machine, pixels, small),
        *_resizes(machine, pixels, small),
        *_small_cases(machine, small),
    ]


def _blurs(machine: Machine, pixels: np.ndarray, small: np.ndarray) -> list[Case]:
    cases = []
    size, whole = (_SMALL, _SMALL), (_SIDE, _SIDE)
    for name, sigma_y in (("iso", 2.0), ("aniso", 0.9)):
        blur = BlurParams(shape=name, size=21, sigma_x=2.0, sigma_y=sigma_y, theta=0.5, beta=1)
        chosen = Filter.of(blur.kernel())
        # Two operations for each tap along each side; a kernel of several terms needs all of them.
        products = 4 * chosen.size * chosen.terms * _FULL
        what = f"{name} blur, {chosen.size}², {chosen.terms} terms"
        cases += [
            Case(what, lambda f=chosen: f.apply(pixels), products / machine.flops, "products"),
            Case(
                f"{what}, then down bicubic",
                lambda f=chosen: blurred_and_resized(pixels, f, size, "bicubic"),
                # A quarter of the rows, then a quarter of their columns.
                (chosen.size + 3) * 2 * chosen.terms * _FULL * (1 / 4 + 1 / 16) / machine.flops,
                "products that count",
            ),
        ]
    mild = Filter.of(kernels.gaussian_kernel(21, sigma_x=0.8, sigma_y=0.8))
    cases.append(
        Case(
            f"up bicubic, then iso blur, {mild.size}²",
            lambda: resized_and_blurred(small, whole, "bicubic", mild),
            4 * _FULL / machine.bytes,
            "large image written",
        )
    )
    return cases


def _resizes(machine: Machine, pixels: np.ndarray, small: np.ndarray) -> list[Case]:
    size, whole = (_SMALL, _SMALL), (_SIDE, _SIDE)
    moved = 4 * _FULL / machine.bytes
    return [
        Case("down area", lambda: resized(pixels, size, "area"), moved, "large image read"),
        Case("down bicubic", lambda: resized(pixels, size, "bicubic"), moved, "large image read"),
        Case(
            "up bilinear", lambda: resized(small, whole, "bilinear"), moved, "large image written"
        ),
        Case("up bicubic", lambda: resized(small, whole, "bicubic"), moved, "large image written"),
        Case(
            "uint8 to float32",
            lambda: pixels.astype(np.uint8).astype(np.float32),
            (4 + 1 + 1 + 4) * _FULL / machine.bytes,
            "large image read and written, twice",
        ),
        Case(
            "clip",
            lambda: np.clip(pixels, 0, 255, out=pixels),
            8 * _FULL / machine.bytes,
            "large image read and written",
        ),
    ]


def _small_cases(machine: Machine, small: np.ndarray) -> list[Case]:
    count = small.size
    drawn = DegradationParams(scale=1, operations=(JpegParams(quality=60),))
    image = noise.rounded(small)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]

    def codec() -> None:
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])
        cv2.imdecode(encoded, cv2.IMREAD_COLOR)

    return [
        Case(
            "Gaussian noise",
            lambda: noise.gaussian_noise(small.shape, sigma=5, gray=False, seed=1),
            4 * count / machine.random_bytes,
            "32 random bits a value",
        ),
        Case(
            "Poisson noise",
            lambda: noise.poisson_noise(small, scale=1, gray=False, seed=1),
            2 * count / machine.random_bytes + 8 * count / machine.bytes,
            "16 random bits, read and write",
        ),
        Case(
            "mask",
            lambda: noise.kept_pixels(small.shape[:2], lost=0.9, seed=1),
            4 * count / 3 / machine.random_bytes,
            "32 random bits a pixel",
        ),
        Case("JPEG q60", lambda: degrade_small(image, drawn), _best(codec), "the codec alone"),
    ]
