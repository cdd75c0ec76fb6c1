"""Makes `docs/images/demo.png`: the demo's model applied to a generated picture.

    python -m tests.benchmarks.readme_picture demo-output/run docs/images/demo.png

The scene is rendered here by a small ray tracer; it is degraded by the demo's chain at x4.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from training.evaluation.comparison import comparison
from training.evaluation.metrics.fidelity import quality
from training.evaluation.photos import DegradedPhoto, degraded_photos
from training.inference.pictures.pixels import bicubic
from training.inference.upscaler import Upscaler
from training.settings.evaluation import EvaluationSettings

SIDE, SAMPLES = 512, 3
SCALE = 4.0
SEEDS = range(8)
"""Degradations are random, and the gain depends on them."""
EYE = np.array([0.0, 0.9, -3.2])
LIGHT = np.array([-0.5, 0.8, -0.45]) / np.linalg.norm([-0.5, 0.8, -0.45])
HORIZON, ZENITH = np.array([0.78, 0.86, 0.95]), np.array([0.25, 0.45, 0.75])
MIRROR, SHINE, FOG, GAMMA = 0.18, 60, 0.06, 1.8


@dataclass(frozen=True)
class Ball:
    center: tuple[float, float, float]
    radius: float
    color: tuple[float, float, float]


BALLS = (
    Ball((-1.0, 0.55, 0.6), 0.55, (0.75, 0.16, 0.1)),
    Ball((0.15, 0.42, -0.35), 0.42, (0.92, 0.7, 0.2)),
    Ball((1.15, 0.7, 1.0), 0.7, (0.13, 0.35, 0.6)),
    Ball((0.75, 0.22, -1.0), 0.22, (0.2, 0.5, 0.25)),
)
FLOOR = len(BALLS)


def scene() -> Image.Image:
    """Four balls on a wooden checkerboard, RGB."""
    y, x = np.mgrid[0 : SIDE * SAMPLES, 0 : SIDE * SAMPLES] / (SIDE * SAMPLES)
    rays = _unit(np.stack([(x - 0.5) * 1.3, (0.42 - y) * 1.3, np.ones_like(x)], axis=-1))
    colors = _shade(np.broadcast_to(EYE, rays.shape).reshape(-1, 3), rays.reshape(-1, 3), bounces=1)
    grid = colors.clip(0, 1).reshape(SIDE, SAMPLES, SIDE, SAMPLES, 3).mean(axis=(1, 3))
    return Image.fromarray((grid ** (1 / GAMMA) * 255).round().astype(np.uint8))


def _shade(origins: np.ndarray, rays: np.ndarray, *, bounces: int) -> np.ndarray:
    """Colors (N, 3) seen along rays (N, 3)."""
    height = rays[:, 1:2].clip(0, 1)
    sky = HORIZON * (1 - height) + ZENITH * height
    colors = sky.copy()
    distance, hit = _nearest(origins, rays)
    for surface in range(FLOOR + 1):
        seen = hit == surface
        points = origins[seen] + rays[seen] * distance[seen, None]
        normals, base = _surface(surface, points)
        above = points + normals * 1e-3
        lit = np.isinf(_nearest(above, np.broadcast_to(LIGHT, points.shape))[0])
        diffuse = lit * (normals @ LIGHT).clip(0, 1)
        color = base * (0.28 + 0.85 * diffuse[:, None])
        if surface != FLOOR:
            mirrored = rays[seen] - 2 * (rays[seen] * normals).sum(1, keepdims=True) * normals
            color += 0.7 * ((mirrored @ LIGHT).clip(0, 1) ** SHINE * (diffuse > 0))[:, None]
            if bounces:
                reflected = _shade(above, mirrored, bounces=bounces - 1)
                color = (1 - MIRROR) * color + MIRROR * reflected
        clear = np.exp(-FOG * distance[seen])[:, None]
        colors[seen] = color * clear + sky[seen] * (1 - clear)
    return colors


def _surface(index: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normals and colors (N, 3) at points of a ball or of the floor."""
    if index != FLOOR:
        ball = BALLS[index]
        return (points - ball.center) / ball.radius, np.broadcast_to(ball.color, points.shape)
    odd = (np.floor(points[:, 0] * 2) + np.floor(points[:, 2] * 2)) % 2 > 0
    grain = 0.5 + 0.5 * np.sin(points[:, 0] * 40 + 3 * np.sin(points[:, 2] * 2.3))
    wood = np.array([0.42, 0.3, 0.2]) + 0.08 * grain[:, None]
    colors = np.where(odd[:, None], np.array([0.85, 0.82, 0.76]), wood)
    return np.broadcast_to([0.0, 1.0, 0.0], points.shape), colors


def _nearest(origins: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the first surface, infinite for the sky, and the surface's number."""
    down = np.minimum(rays[:, 1], -1e-4)
    distance = np.where(rays[:, 1] < -1e-4, -origins[:, 1] / down, np.inf)
    hit = np.where(np.isfinite(distance), FLOOR, -1)
    for index, ball in enumerate(BALLS):
        offset = origins - ball.center
        along = (offset * rays).sum(axis=1)
        root = along**2 - ((offset**2).sum(axis=1) - ball.radius**2)
        reach = -along - np.sqrt(root.clip(0))
        nearer = (root > 0) & (reach > 1e-3) & (reach < distance)
        distance, hit = np.where(nearer, reach, distance), np.where(nearer, index, hit)
    return distance, hit


def _unit(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit


def main(model: str, target: str) -> None:
    upscaler = Upscaler.from_pretrained(model)
    with TemporaryDirectory() as folder:
        scene().save(Path(folder) / "scene.png")
        photos = [_degraded(folder, seed, upscaler) for seed in SEEDS]
    gains = [_gain(upscaler, photo) for photo in photos]
    print("gains, dB:", ", ".join(f"{gain:+.2f}" for gain in gains))
    rows = [photos[gains.index(extreme)] for extreme in (min(gains), max(gains))]
    comparison(upscaler, rows, steps=(1,)).save(target, optimize=True)


def _degraded(folder: str, seed: int, upscaler: Upscaler) -> DegradedPhoto:
    settings = EvaluationSettings(photos=folder, scales=(SCALE,), steps=(1,), seed=seed)
    (photo,) = degraded_photos(settings, upscaler.config.degradation, SCALE)
    return photo


def _gain(upscaler: Upscaler, photo: DegradedPhoto) -> float:
    """PSNR of one step over bicubic, dB."""
    height, width = photo.original.shape[:2]
    one_step = upscaler.restore(upscaler.enlarge(photo.small, (width, height)), steps=1)
    return _psnr(photo, one_step) - _psnr(photo, bicubic(photo.small, (width, height)))


def _psnr(photo: DegradedPhoto, image: np.ndarray) -> float:
    return quality(photo.original, image).psnr


if __name__ == "__main__":
    main(*sys.argv[1:])
