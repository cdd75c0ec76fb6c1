"""The commands `flowmapsr dataset ...`. Imports nothing heavy at the top, like `cli.py`."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from datagen.errors import FlowmapsrError, NoServerError
from pipelines.environment import default_tracking_uri
from pipelines.servers import PREFECT, RAY, check_servers
from pipelines.terminal import dataset_report
from pipelines.terminal.doing import doing
from pipelines.terminal.options import (
    AsJson,
    DryRun,
    PlainUsage,
    RecipeName,
    Settings,
    TakeOver,
)
from pipelines.terminal.process_edge import process_edge
from training.monitoring.json_log import at_work_on

log = logging.getLogger(__name__)

Dataset = Annotated[
    str, typer.Argument(metavar="DATASET", help="Folder or s3:// prefix, or its manifest.json.")
]

dataset_app = typer.Typer(name="dataset", no_args_is_help=True, rich_markup_mode=None)


@dataset_app.command("build", cls=PlainUsage)
def dataset_build(
    recipe: RecipeName,
    settings: Settings = None,
    dry_run: DryRun = False,
    take_over: TakeOver = False,
    as_json: AsJson = False,
) -> None:
    """Turn photos into shards of latents.

    Run it again to continue, or to add new photos.

    \b
    Example:
      flowmapsr dataset build demo sources=[/photos] output=/data/set workers=2
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.recipes.load import dataset_recipe, fitting_recipe, require_sources

        resolved = dataset_recipe(recipe, settings or [])
        at_work_on(dataset=resolved.output)
        codec = resolved.codec.kind if resolved.latents else None
        training = fitting_recipe(codec, preferred=recipe)
        if dry_run:
            return out.say_recipe(resolved)
        require_sources(resolved)
        from datagen.dataset.layout import MANIFEST
        from datagen.io import storage

        is_new = not storage.exists(storage.join(resolved.output, MANIFEST))
        if is_new:  # else there may be nothing to do, for which no server is needed
            check_servers(RAY, PREFECT)
        doing("listing the photos")
        from datagen.build.survey import survey
        from datagen.pairs.listing import list_photos

        listing = list_photos(resolved)
        found = survey(resolved, listing)
        manifest = found.complete
        if manifest is None:
            from pipelines.preflight import check_build, check_surroundings

            if not is_new:
                check_servers(RAY, PREFECT)
            if not storage.is_remote(resolved.output):
                default_tracking_uri(str(Path(resolved.output).parent))
            check_surroundings()
            check_build(resolved, found, take_over=take_over)
            doing("loading the libraries")
            from pipelines.flows.dataset import build_dataset, build_listed
            from pipelines.orchestration.guard import guarded

            work = partial(build_listed, resolved, listing, take_over=take_over)
            manifest = guarded(build_dataset, resolved, work)
        out.say(dataset_report.built(resolved.output, manifest, found, recipe=training))


@dataset_app.command("inspect", cls=PlainUsage)
def dataset_inspect(
    dataset: Dataset,
    key: Annotated[str | None, typer.Option(help="Key of a sample, or its beginning.")] = None,
    output: Annotated[str, typer.Option(help="Folder for the pictures of --key.")] = ".",
    as_json: AsJson = False,
) -> None:
    """Summarize a dataset, or decode one of its samples.

    \b
    Examples:
      flowmapsr dataset inspect /data/set
      flowmapsr dataset inspect /data/set --key 156fd9 --output pictures
    """
    with process_edge(as_json=as_json) as out:
        from datagen.dataset.manifest import kept_digests, open_dataset
        from pipelines.recipes.load import absolute_location

        manifest, location = open_dataset(absolute_location(dataset, field="DATASET"))
        if key is None:
            kept = None
            try:
                kept = kept_digests(location)
            except FlowmapsrError as error:  # an account that may read but not list
                log.warning("finished states are not known: %s", error)
            return out.say(dataset_report.inspected(location, manifest, kept))
        from datagen.review.inspect_sample import inspect_sample, save_pictures

        sample = inspect_sample(location, key)
        files = save_pictures(sample, absolute_location(output, field="--output"))
        out.say(dataset_report.sample_inspected(location, sample, files))


@dataset_app.command("verify", cls=PlainUsage)
def dataset_verify(
    dataset: Dataset,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also make one sample of each shard again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every byte of a dataset and check it.

    With --deep one sample of each shard is made again from its photo and compared.

    Exit code 1 if anything differs from the manifest.
    """
    with process_edge(as_json=as_json) as out:
        from datagen.dataset.manifest import open_dataset
        from datagen.review.verify import verify_dataset
        from pipelines.recipes.load import absolute_location, fitting_recipe
        from pipelines.terminal.progress import show_progress

        location = absolute_location(dataset, field="DATASET")
        try:
            manifest, _ = open_dataset(location)
        except NoServerError:
            raise
        except FlowmapsrError:  # an issue, which the verification names
            faults = verify_dataset(location)
            return out.say(dataset_report.verified(location, faults, recipe="RECIPE"))
        with show_progress("verify", total=manifest.num_shards, unit="shards") as progress:
            issues = verify_dataset(location, on_shard=lambda done, _: progress.reach(done))
        without_photo = None
        if deep:
            from datagen.review.recompute import recompute_samples

            with show_progress("recompute", total=manifest.num_shards, unit="shards") as progress:
                found, without_photo = recompute_samples(location, on_shard=progress.reach)
            issues += found
        training = fitting_recipe(manifest.codec.kind if manifest.codec else None)
        out.say(
            dataset_report.verified(location, issues, recipe=training, without_photo=without_photo)
        )
