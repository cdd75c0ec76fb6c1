"""Trainings as MLflow holds them, written at once with the names that a training logs by."""

from __future__ import annotations

import json
import math
import time

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from PIL import Image

STEPS, HOURS = 2000, 2.5


def log_training(
    client: MlflowClient,
    experiment_id: str,
    name: str,
    *,
    settings: dict[str, str],
    gain: float | None = 1.0,
    pictures: tuple[int, ...] = (),
) -> str:
    """A finished training of two stages; returns the ID of its parent run.

    Args:
        gain: at the end, over bicubic in dB; None for a training without held-out samples.
        pictures: steps at which pictures of two photos are logged.
    """
    run_id = str(client.create_run(experiment_id, run_name=name).info.run_id)
    dataset = Dataset("set", "0" * 36, "local", json.dumps({"uri": "/data/set"}))
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags=[])])
    values = [Metric(*one) for one in curves(gain)]
    for start in range(0, len(values), 1000):
        client.log_batch(run_id, metrics=values[start : start + 1000])
    params = {"output": f"/data/{name}", "workers": "2", "model.kind": "flowmap", **settings}
    tags = [RunTag("role", "training")]
    client.log_batch(run_id, params=[Param(*one) for one in params.items()], tags=tags)
    for step in pictures:
        for photo in (1, 2):
            image = Image.new("RGB", (240, 40), (80 * photo, 90, step * 255 // STEPS))
            client.log_image(run_id, image, key=f"pictures/photo_{photo}", step=step)
    stage_tags = {"role": "stage", "stage": "warmup", "mlflow.parentRunId": run_id}
    stage = client.create_run(experiment_id, run_name=f"{name} · 1 warmup", tags=stage_tags)
    client.log_metric(stage.info.run_id, "loss/total", 0.1, step=STEPS)
    for one in (stage.info.run_id, run_id):
        client.set_terminated(one)
    return run_id


def curves(gain: float | None, *, every: int = 100) -> list[tuple[str, float, int, int]]:
    """Name, value, time and step of what the parent run of a training has."""
    now = int(time.time() * 1000)
    found: list[tuple[str, float, int, int]] = []
    for step in range(every, STEPS + 1, every):
        left = math.exp(-4 * step / STEPS)
        values = {
            **{"loss/total": 0.2 + left, "loss/fm": 0.15 + left},
            **{"optim/gradient_norm": 1 + left, "perf/images_per_second": 120 + 10 * left},
            **{"perf/data_wait_fraction": 0.02, "cost/worker_hours": HOURS * step / STEPS},
            **{"cost/images_seen": 64.0 * step, "cost/restarts": 0.0},
        }
        if gain is not None:
            reached = gain * (1 - left)
            held_out = {"loss/fm": 0.2 + left}
            for scale in ("", "_x4"):
                held_out |= {f"psnr{scale}_nfe1": 25 + reached, f"gain{scale}_nfe1": reached}
                held_out |= {f"psnr{scale}_bicubic": 25.0, f"ssim{scale}_nfe1": 0.7 + reached / 20}
            for kind in ("val", "last", "best"):
                values |= {f"{kind}/{name}": value for name, value in held_out.items()}
        found += [(name, value, now, step) for name, value in values.items()]
    return found
