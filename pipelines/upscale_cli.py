"""The command `flowmapsr upscale`, which uses a model.

Imports nothing heavy at the top, like `cli.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datagen.errors import FlowmapsrError
from pipelines.servers import require_cluster_address
from pipelines.terminal import reports
from pipelines.terminal.doing import doing
from pipelines.terminal.options import (
    AsJson,
    Backend,
    ColorFix,
    ColorStrength,
    Guidance,
    LoraScale,
    MaxMemory,
    Precision,
    Preset,
    Tile,
)
from pipelines.terminal.process_edge import process_edge
from training.monitoring.json_log import tell

if TYPE_CHECKING:
    from training.inference.presets import Knobs
    from training.inference.presets import Preset as PresetName


def upscale(
    source: Annotated[
        str, typer.Argument(metavar="PHOTOS", help="A photo, or a folder of them; or s3://...")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="File or folder to write.")],
    scale: Annotated[float, typer.Option(min=1, max=16, help="Factor to enlarge by.")] = 4.0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Network evaluations. [default: the model's own]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder of a model or training run.")] = None,
    preset: Preset = None,
    lora_scale: LoraScale = None,
    guidance: Guidance = None,
    precision: Precision = "auto",
    backend: Backend = "torch",
    seed: Annotated[int, typer.Option(help="Of the noise that ELIR adds, for every photo.")] = 0,
    tile: Tile = None,
    max_memory: MaxMemory = None,
    color_fix: ColorFix = None,
    color_strength: ColorStrength = None,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Of JPEG, WebP and AVIF. [default: 95, AVIF 90]"),
    ] = None,
    strip_gps: Annotated[
        bool, typer.Option("--strip-gps", help="Leave out where photos were taken.")
    ] = False,
    max_megapixels: Annotated[
        float | None,
        typer.Option(min=1, help="Of a photo; larger ones may be made to harm. [default: 179]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace output files.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Make only missing outputs.")
    ] = False,
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster",
            help="Spread photos over the Ray cluster at RAY_ADDRESS, whose nodes must all see "
            "photos, output and model: in shared folders, or photos and output in s3://.",
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Of --cluster, at most. [default: all that fit]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Enlarge a photo, or every photo of a folder.

    Of a folder the same command goes on where it was stopped; what changed is made anew.

    \b
    Examples:
      flowmapsr upscale photo.jpg -o large.png --scale 4 --model /data/run
      flowmapsr upscale s3://bucket/photos -o /large --scale 2 --model /data/run
      flowmapsr upscale /nfs/photos -o /nfs/large --cluster --model /nfs/run
    """
    with process_edge(as_json=as_json) as out:
        require_cluster_address(cluster)
        if workers is not None and not cluster:
            raise FlowmapsrError("--workers is for --cluster: give that too, or leave it out")
        from pipelines.recipes.load import absolute_location, at_home
        from pipelines.terminal.photo_progress import PhotoProgress
        from pipelines.terminal.progress import show_progress
        from training.inference.batch import upscale_all
        from training.inference.files import (
            UpscaleSettings,
            default_model,
            settings_digest,
            warn_of_scale,
        )
        from training.inference.jobs import plan_jobs
        from training.inference.made import remove_leftovers, unfinished
        from training.inference.presets import Knobs
        from training.restorer_protocol import LoadOptions
        from training.weights.model_folder import find_model

        located = absolute_location if cluster else at_home  # nodes have other working folders
        source, output = located(source, field="PHOTOS"), located(output, field="--output")
        plan = plan_jobs(source, output, overwrite=overwrite, skip_existing=skip_existing)
        remove_leftovers(plan.jobs)
        jobs, digest = plan.jobs, ""
        folder = find_model(located(model or default_model(), field="--model"))
        knobs = Knobs(steps, lora_scale, guidance, color_strength)
        if preset is not None:
            knobs = _filled(knobs, preset, folder, scale)
        doing("loading the model")
        from training.inference.upscaler import Upscaler

        options = LoadOptions(
            knobs.lora_scale,
            knobs.guidance,
            precision,
            seed,
            tile=tile,
            max_memory=max_memory,
            backend=backend,
        )
        upscaler = Upscaler.from_pretrained(folder, **asdict(options))
        settings = UpscaleSettings(
            scale=scale,
            steps=knobs.steps,
            seed=seed,
            color_fix=color_fix,
            color_strength=1.0 if knobs.color_strength is None else knobs.color_strength,
            quality=quality,
            strip_gps=strip_gps,
        )
        if max_megapixels is not None:
            settings = replace(settings, max_megapixels=max_megapixels)
        warn_of_scale(upscaler, scale)
        if any(job.record for job in jobs):
            digest = settings_digest(upscaler, settings)
            jobs = unfinished(jobs, digest, overwrite=overwrite)
        total, done = len(plan.jobs), len(plan.jobs) - len(jobs)

        place: AbstractContextManager[object] = nullcontext()
        if cluster:
            del upscaler  # the workers have their own
            from pipelines.cluster.ray_session import ray_cluster
            from pipelines.cluster.upscale import upscale_on_cluster

            place = ray_cluster(cpus=1)
        with place, show_progress("upscale", total=total, unit="images", done=done) as progress:
            shown = PhotoProgress(progress, total=total, done=done)
            if cluster:
                report = upscale_on_cluster(
                    *(jobs, folder, options, settings),
                    digest=digest,
                    workers=workers,
                    on_done=shown.ended,
                    on_progress=shown.under_way,
                )
            else:
                report = upscale_all(
                    *(jobs, upscaler, settings),
                    digest=digest,
                    on_done=shown.ended,
                    on_progress=shown.under_way,
                )
        report.failed += plan.unreadable
        out.say(reports.upscaled(output, scale, report, unchanged=done))


def _filled(knobs: Knobs, preset: PresetName, folder: Path, scale: float) -> Knobs:
    """With what a preset says where nothing is given, by the curve that was measured of a model."""
    from training.inference.presets import read_curve

    curve = read_curve(folder)
    point = curve.point(preset, scale)
    tell(knobs.described(preset, point, curve))
    return knobs.filled(point)
