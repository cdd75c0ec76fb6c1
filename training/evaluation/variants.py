"""The models of a comparison, each with some settings of its knobs: the rows that networks have in
its table."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from datagen.degradation.settings import DegradationSettings
from datagen.errors import FlowmapsrError
from datagen.io.weight_files import read_json
from training.evaluation.cost import Cost, cost_of
from training.evaluation.measure import Method
from training.evaluation.photos import DegradedPhoto
from training.inference.upscaler import Upscaler
from training.settings.benchmark import BenchmarkModel
from training.settings.evaluation import ColorFix, EvaluationSettings
from training.system_protocol import SystemOf
from training.systems import system_of as default_system_of
from training.weights.model_folder import CONFIG, find_model, model_kind


@dataclass(frozen=True)
class Variant:
    """A model with its knobs set; None is the model's own."""

    name: str
    """In the table."""
    folder: str
    """Of the model itself."""
    lora_scale: float | None = None
    guidance: float | None = None
    color_fix: ColorFix = "off"

    def load(
        self,
        settings: EvaluationSettings,
        *,
        same_everywhere: bool = False,
        system_of: SystemOf = default_system_of,
    ) -> Upscaler:
        """
        Raises:
            FlowmapsrError: there is no such model, or it does not have a knob that is set.
        """
        return Upscaler.from_pretrained(
            self.folder,
            lora_scale=self.lora_scale,
            guidance=self.guidance,
            precision=settings.precision,
            seed=settings.seed,
            same_everywhere=same_everywhere,
            system_of=system_of,
        )

    def methods(
        self, upscaler: Upscaler, steps: Sequence[int], costs: Mapping[int, Cost] | None = None
    ) -> list[Method]:
        """One for each number of steps, with its cost where that is known."""
        known = costs or {}
        return [
            Method(
                name=self.name,
                steps=n,
                restore=partial(restored, upscaler, steps=n, color_fix=self.color_fix),
                cost=known.get(n),
                lora_scale=self.lora_scale,
                guidance=self.guidance,
            )
            for n in steps
        ]


def costs_of(upscaler: Upscaler, steps: Sequence[int]) -> dict[int, Cost]:
    """By number of steps."""
    return {n: cost_of(upscaler, n) for n in steps}


def restored(
    upscaler: Upscaler, photo: DegradedPhoto, *, steps: int, color_fix: ColorFix
) -> np.ndarray:
    """RGB uint8 of the original's size."""
    lq, scale = upscaler.enlarge(photo.small, photo.size), photo.size[0] / photo.small.shape[1]
    return upscaler.restore(lq, steps=steps, color_fix=color_fix, scale=scale)


@dataclass(frozen=True)
class Variants:
    """All rows of networks, and what is to be said of them."""

    each: tuple[Variant, ...]
    models: dict[str, str]
    """Folder of each model, by its name without knobs."""
    degradation: DegradationSettings
    """Of the first model, which all of them restore after."""
    notes: tuple[str, ...]


def find_variants(
    models: Sequence[BenchmarkModel],
    settings: EvaluationSettings,
    *,
    lora_scales: Sequence[float] = (),
    guidances: Sequence[float] = (),
    system_of: SystemOf = default_system_of,
) -> Variants:
    """Every model with every setting of its knobs; sweeps leave models without a knob as they are.

    Raises:
        FlowmapsrError: a folder is no model, or a baseline has a model's name.
    """
    folders = [find_model(one.folder) for one in models]
    names = _names(models, folders, system_of)
    found: list[Variant] = []
    notes = []
    for name, folder in zip(names, folders, strict=True):
        knobs = _knobs(folder)
        swept = {"LoRA": tuple(lora_scales), "w": tuple(guidances)}
        for knob, values in swept.items():
            if values and knob not in knobs:
                notes.append(f"{name}: its {_CALLED[knob]} is not swept, as it has none")
                swept[knob] = ()
        for lora, w in itertools.product(swept["LoRA"] or (None,), swept["w"] or (None,)):
            label = [name, *_label("LoRA", lora), *_label("w", w)]
            found.append(
                Variant(
                    " ".join(label),
                    str(folder),
                    settings.lora_scale if lora is None else lora,
                    settings.guidance if w is None else w,
                    settings.color_fix,
                )
            )
    for one in found:
        if one.name in {"bicubic", "original"}:
            raise FlowmapsrError(f"a model is called {one.name}, as another row; choose another")
        if one.name in {baseline.name for baseline in settings.baselines}:
            raise FlowmapsrError(f"baseline {one.name} has the name of the model; choose another")
    chains = [read_json(folder / CONFIG)["degradation"] for folder in folders]
    notes += [
        f"{name} was trained with another degradation than {names[0]}, whose is evaluated"
        for name, chain in zip(names, chains, strict=True)
        if chain != chains[0] and settings.photos is not None
    ]
    degradation = DegradationSettings.model_validate(chains[0])
    by_name = {name: str(folder) for name, folder in zip(names, folders, strict=True)}
    return Variants(tuple(found), by_name, degradation, tuple(notes))


_CALLED = {"LoRA": "LoRA scale", "w": "guidance"}


def _label(knob: str, value: float | None) -> list[str]:
    return [] if value is None else [f"{knob} {value:g}"]


def _knobs(folder: Path) -> set[str]:
    """Those that a model's folder lets one choose."""
    config = read_json(folder / CONFIG)
    lora = config.get("lora") is not None
    guided = bool(config.get("model", {}).get("guidance_conditioning"))
    return {*(["LoRA"] if lora else []), *(["w"] if guided else [])}


def _names(
    models: Sequence[BenchmarkModel], folders: Sequence[Path], system_of: SystemOf
) -> list[str]:
    """As given, or of the folders; of a model that is alone, that of its system."""
    if len(models) == 1 and models[0].name is None:
        return [system_of(model_kind(folders[0])).name]
    shown = told_apart([one.folder for one in models])
    names = [one.name or name for one, name in zip(models, shown, strict=True)]
    for name in names:
        if names.count(name) > 1:
            raise FlowmapsrError(f"two models would be called {name}: write NAME=FOLDER for each")
    return names


def told_apart(places: Sequence[str]) -> list[str]:
    """For each place the last part of its path that the others do not share, and that says more
    than `run`: `/data/w2/run` and `/data/w3` are `w2` and `w3`."""
    parts = [_telling(PurePosixPath(place).parts) for place in places]
    depth = 1
    while depth < min(map(len, parts)) and len({one[-depth] for one in parts}) == 1:
        depth += 1
    if len(set(parts)) == 1:
        depth = 1
    return [one[-min(depth, len(one))] for one in parts]


def _telling(parts: tuple[str, ...]) -> tuple[str, ...]:
    while len(parts) > 2 and parts[-1] in ("run", "model"):
        parts = parts[:-1]
    return parts
