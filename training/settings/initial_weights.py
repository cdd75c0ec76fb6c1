"""Where a stage's first weights come from, as written in a recipe: checked before anything runs.

Knows no torch and opens nothing; what lies at a place is `initialisation`'s business.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

if TYPE_CHECKING:
    from training.settings.stage import StageSettings

STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
REGISTRY = "models:/"
_MODEL_VERSION = re.compile(r"models:/[^/@]+/\d+")


def is_registry(text: str) -> bool:
    return text.startswith(REGISTRY)


def is_stage(text: str) -> bool:
    """Whether this is a stage's name: a folder is written with a slash."""
    return STAGE_NAME.fullmatch(text) is not None


def is_place(text: str) -> bool:
    """Whether this is a local folder or file."""
    return "://" not in text and not is_registry(text) and _looks_like_path(text)


def _looks_like_path(text: str) -> bool:
    return "/" in text or text.endswith(".safetensors")


def _checked(text: str) -> str:
    if is_registry(text):
        if not _MODEL_VERSION.fullmatch(text):
            raise ValueError(
                "write models:/NAME/VERSION with the version's number: an alias or a stage may "
                "come to mean another model while the run goes on"
            )
    elif "://" in text:
        raise ValueError("give a local place, models:/NAME/VERSION or the name of a stage")
    elif not is_stage(text) and not _looks_like_path(text):
        raise ValueError(
            "give the name of an earlier stage (a-z, 0-9, '-', '_'), a run or model folder "
            "(written with a slash), a .safetensors file or models:/NAME/VERSION"
        )
    return text


InitialWeights = Annotated[str, AfterValidator(_checked)]
"""The name of an earlier stage; a run folder, model folder, diffusers folder or `.safetensors`
file (with a slash or that ending); or `models:/NAME/VERSION` of MLflow's registry."""


def origin(stages: Sequence[StageSettings], name: str) -> str | None:
    """What the stage `name` starts from: `initialise_from`, else the stage before, else None."""
    index = [stage.name for stage in stages].index(name)
    chosen = stages[index].initialise_from
    if chosen is not None:
        return chosen
    return stages[index - 1].name if index else None


def check_stage_order(stages: Sequence[StageSettings]) -> None:
    """Raises ValueError for stages that cannot follow each other, and says how to mend it."""
    for index, stage in enumerate(stages):
        earlier = [before.name for before in stages[:index]]
        source = origin(stages, stage.name)
        if source is not None and is_stage(source) and source not in earlier:
            raise ValueError(_no_such_stage(stage.name, source, earlier))
        if stage.adversarial is not None:
            _check_trained(stages, stage.name)


def _no_such_stage(name: str, source: str, earlier: list[str]) -> str:
    close = difflib.get_close_matches(source, earlier, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"earlier: {', '.join(earlier) or 'none'}"
    return (
        f"stage {name!r}: initialise_from {source!r} is no earlier stage ({hint}); write a folder "
        "with a slash, such as ./folder"
    )


def _check_trained(stages: Sequence[StageSettings], name: str) -> None:
    """An adversarial stage adds a LoRA to a frozen network that already takes steps."""
    by_name = {stage.name: stage for stage in stages}
    source = origin(stages, name)
    while source is not None and source in by_name:
        if by_name[source].objective.kind != "flow_matching":
            return
        source = origin(stages, source)
    if source is None:
        raise ValueError(
            f"stage {name!r} is adversarial: it adds a LoRA to a frozen network that takes two "
            "steps, and nothing before it learns steps. Put a self_distillation stage before it, "
            "or set its initialise_from to a trained model"
        )
