"""The commands `flowmapsr evaluate` and `flowmapsr upscale`, which use a model.

Imports nothing heavy at the top, like `cli.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pipelines import environment
from pipelines.servers import check_servers
from pipelines.terminal import reports
from pipelines.terminal.doing import doing
from pipelines.terminal.options import (
    AsJson,
    ColorFix,
    ColorStrength,
    Guidance,
    LoraScale,
    MaxMemory,
    Precision,
    Tile,
)
from pipelines.terminal.process_edge import process_edge


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a model or training run.")
    ],
    photos: Annotated[str, typer.Option(help="Folder of photos that were not trained on.")],
    scales: Annotated[str, typer.Option(help="Factors to downscale by.")] = "4,8",
    steps: Annotated[str, typer.Option(help="Numbers of network evaluations.")] = "1,2,4",
    lora_scale: LoraScale = None,
    guidance: Guidance = None,
    precision: Precision = "auto",
    metrics: Annotated[
        str, typer.Option(help="More to measure, such as psnr_y,ssim_y,niqe,lpips_alex.")
    ] = "",
    convention: Annotated[
        Literal["plain", "paper", "basicsr", "pyiqa"],
        typer.Option(help="Whose luma and border PSNR, SSIM and NIQE follow."),
    ] = "plain",
    metric_weights: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the networks of metrics.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where to write a line per photo."),
    ] = None,
    track: Annotated[
        bool, typer.Option("--track", help="Log the results to the training's MLflow run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restore degraded photos and compare with the originals.

    Bicubic interpolation is compared too.

    \b
    Examples:
      flowmapsr evaluate /data/run --photos /held-out --scales 4,8 --steps 1,2
      flowmapsr evaluate /data/run --photos /held-out --metrics psnr_y,niqe
      flowmapsr evaluate /data/run --photos /held-out --track
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.recipes.load import absolute_location, evaluation_settings

        factors, counts = scales.split(","), steps.split(",")
        settings = evaluation_settings(
            photos,
            scales=factors,
            steps=counts,
            lora_scale=lora_scale,
            guidance=guidance,
            precision=precision,
            metrics=[name.strip() for name in metrics.split(",") if name.strip()],
            convention=convention,
            metric_weights=metric_weights,
        )
        folder = None if output is None else absolute_location(output, field="--output")
        location = absolute_location(model, field="MODEL")
        from training.tracking.evaluation_log import finished_training, log_evaluation

        training = finished_training(location) if track else None
        if training is not None:
            environment.default_tracking_uri(location)
            check_servers()
        doing("evaluating")
        from training.evaluation.evaluate import evaluate as evaluate_model

        found = evaluate_model(location, settings)
        if folder is not None:
            from training.evaluation.results import write_results

            write_results(folder, location, settings, found)
        result = reports.evaluated(location, found, folder)
        if training is not None:
            log_evaluation(training, settings, found.rows)
            result = reports.with_unsent(result, training)
        out.say(result)


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
    lora_scale: LoraScale = None,
    guidance: Guidance = None,
    precision: Precision = "auto",
    seed: Annotated[int, typer.Option(help="Of the noise that ELIR adds, for every photo.")] = 0,
    tile: Tile = None,
    max_memory: MaxMemory = None,
    color_fix: ColorFix = None,
    color_strength: ColorStrength = 1.0,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Of JPEG, WebP and AVIF. [default: 95, AVIF 90]"),
    ] = None,
    strip_gps: Annotated[
        bool, typer.Option("--strip-gps", help="Leave out where photos were taken.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace output files.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Make only missing outputs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Enlarge a photo, or every photo of a folder.

    Of a folder the same command goes on where it was stopped; what changed is made anew.

    \b
    Examples:
      flowmapsr upscale photo.jpg -o large.png --scale 4 --model /data/run
      flowmapsr upscale s3://bucket/photos -o /large --scale 2 --model /data/run
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.recipes.load import at_home
        from pipelines.terminal.progress import show_progress
        from training.inference.files import (
            UpscaleSettings,
            default_model,
            settings_digest,
            upscale_all,
        )
        from training.inference.jobs import plan_jobs
        from training.inference.made import unfinished

        source, output = at_home(source, field="PHOTOS"), at_home(output, field="--output")
        plan = plan_jobs(source, output, overwrite=overwrite, skip_existing=skip_existing)
        jobs, digest = plan.jobs, ""
        doing("loading the model")
        from training.inference.upscaler import Upscaler

        upscaler = Upscaler.from_pretrained(
            model or default_model(),
            lora_scale=lora_scale,
            guidance=guidance,
            precision=precision,
            seed=seed,
            tile=tile,
            max_memory=max_memory,
        )
        settings = UpscaleSettings(
            scale=scale,
            steps=steps,
            seed=seed,
            color_fix=color_fix,
            color_strength=color_strength,
            quality=quality,
            strip_gps=strip_gps,
        )
        if any(job.record for job in jobs):
            digest = settings_digest(upscaler, settings)
            jobs = unfinished(jobs, digest, overwrite=overwrite)
        total, done = len(plan.jobs), len(plan.jobs) - len(jobs)
        with show_progress("upscale", total=total, unit="images", done=done) as progress:
            report = upscale_all(
                jobs,
                upscaler,
                settings,
                digest=digest,
                on_done=lambda photo, report: progress.advance(
                    note=f"{report.speed:.2f} megapixels/s  {photo.rpartition('/')[2]}"
                ),
            )
        report.failed += plan.unreadable
        out.say(reports.upscaled(output, scale, report, unchanged=done))
