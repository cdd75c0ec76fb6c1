"""The command `flowmapsr evaluate`, which measures a model.

Imports nothing heavy at the top, like `cli.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from datagen.errors import FlowmapsrError
from pipelines import environment
from pipelines.servers import check_servers
from pipelines.terminal import reports
from pipelines.terminal.doing import doing
from pipelines.terminal.options import AsJson, Guidance, LoraScale, Precision
from pipelines.terminal.process_edge import process_edge


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Folders of models or training runs, or NAME=DIR."),
    ],
    photos: Annotated[
        str | None, typer.Option(metavar="DIR", help="Photos that were not trained on.")
    ] = None,
    pairs: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="HQ=DIR LQ=DIR", help="Instead of --photos: those with their LQ."),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(
            metavar="HOW", help="How pairs match: ends of names (_HR,_LR4) or a table (.csv)."
        ),
    ] = None,
    no_reference: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Instead of --photos: LQ pictures without originals."),
    ] = None,
    scales: Annotated[
        str | None, typer.Option(help="Factors to reduce and enlarge by.", show_default="4,8")
    ] = None,
    steps: Annotated[str, typer.Option(help="Numbers of network evaluations.")] = "1,2,4",
    lora_scale: LoraScale = None,
    guidance: Guidance = None,
    color_fix: Annotated[
        Literal["wavelet", "lab", "off"],
        typer.Option(help="How results get the colors of their LQ, as upscale does; off: not."),
    ] = "off",
    precision: Precision = "auto",
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[KIND:]NAME[=PLACE]",
            help="lanczos, another system's pictures of the LQ, spandrel:NAME=FILE, ncnn:NAME=DIR.",
        ),
    ] = None,
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
        typer.Option("--output", "-o", metavar="DIR", help="Where results and LQ are written."),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A page with tables, curves and pictures (.html)."),
    ] = None,
    track: Annotated[
        bool, typer.Option("--track", help="Log the results to the training's MLflow run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restore degraded photos and compare with the originals.

    Bicubic interpolation is compared too, and several models with each other. LQ of
    photos is made as in the training of the first model.

    \b
    Examples:
      flowmapsr evaluate /data/run --photos /held-out --scales 4,8 --steps 1,2
      flowmapsr evaluate /data/run --photos /held-out --metrics psnr_y,niqe
      flowmapsr evaluate /data/run --photos /held-out --report report.html
      flowmapsr evaluate /data/run --photos /held-out --baseline other=/their
      flowmapsr evaluate /data/run --photos /held-out --baseline ncnn:x4plus=DIR
      flowmapsr evaluate /data/run --photos /held-out --track
      flowmapsr evaluate /data/a /data/b --photos /held-out --report ab.html
      flowmapsr evaluate /data/run --pairs HQ=/set/HR LQ=/set/LR
      flowmapsr evaluate /data/run --no-reference /RealSet65 --scales 4
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.recipes.load import (
            absolute_location,
            baseline_values,
            benchmark_models,
            evaluation_settings,
            pair_values,
            require_photos,
        )

        settings = evaluation_settings(
            photos=photos,
            pairs=pair_values(pairs, match),
            no_reference=no_reference,
            scales=None if scales is None else scales.split(","),
            steps=steps.split(","),
            lora_scale=lora_scale,
            guidance=guidance,
            color_fix=color_fix,
            precision=precision,
            baselines=[baseline_values(text) for text in baseline or ()],
            metrics=[name.strip() for name in metrics.split(",") if name.strip()],
            convention=convention,
            metric_weights=metric_weights,
        )
        folder = None if output is None else absolute_location(output, field="--output")
        page_at = None if report is None else absolute_location(report, field="--report")
        chosen = benchmark_models(models)
        location = chosen[0].folder
        if track and len(chosen) > 1:
            raise FlowmapsrError(
                "--track logs to the run of one model; leave it out, or use flowmapsr benchmark"
            )
        from training.evaluation.results import RESULTS, require_place, write_results
        from training.tracking.evaluation_log import finished_training, log_evaluation

        training = finished_training(location) if track else None
        if training is not None:
            environment.default_tracking_uri(location)
            check_servers()
        require_photos(settings)
        for path in filter(None, (page_at, folder and f"{folder}/{RESULTS}")):
            require_place(path)
        doing("evaluating")
        from datagen.io import storage
        from training.evaluation.evaluate import evaluate as evaluate_alone
        from training.evaluation.report.evaluation_page import evaluate_with_page

        lq_folder = None if folder is None else f"{folder}/lq"
        page = None
        if page_at is not None or training is not None:
            found, page = evaluate_with_page(chosen, settings, lq_folder=lq_folder)
        else:
            found = evaluate_alone(chosen, settings, lq_folder=lq_folder)
        if page_at is not None and page is not None:
            storage.write_bytes(page_at, page)
        if folder is not None:
            write_results(folder, settings, found)
        result = reports.evaluated(location, found, folder, page_at)
        if training is not None:
            log_evaluation(training, settings, found.rows, page)
            result = reports.with_unsent(result, training)
        out.say(result)
