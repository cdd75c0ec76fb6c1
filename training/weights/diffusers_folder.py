"""A folder of diffusers with a U-Net: its files, and where its settings are not our network's."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datagen.errors import FlowmapsrError
from datagen.io.weight_files import check_not_quantized, find_weights, read_json
from training.settings.model import ModelSettings
from training.weights.model_folder import CONFIG

CLASS = "UNet2DConditionModel"
WEIGHTS = "diffusion_pytorch_model"
DIFFUSION_TIMES = 1000.0
"""`time_embedding_scale` of diffusion checkpoints."""
SAME_FUNCTION = (
    *("center_input_sample", "flip_sin_to_cos", "freq_shift", "only_cross_attention"),
    *("downsample_padding", "mid_block_scale_factor", "act_fn", "norm_eps"),
    *("dual_cross_attention", "resnet_time_scale_shift", "resnet_skip_time_act"),
    *("resnet_out_scale_factor", "time_embedding_type", "time_embedding_act_fn"),
    *("timestep_post_act", "attention_type", "class_embeddings_concat"),
    *("mid_block_only_cross_attention", "cross_attention_norm"),
)
"""Fields of a U-Net's config that change what its weights compute, and not all of them a shape.
Ours has diffusers' defaults. The other fields show in names and shapes (sizes, blocks), belong to
conditions that ours replaces by its own, or matter to training only (dropout)."""


@dataclass(frozen=True)
class Difference:
    """A setting that is another one at the source than here."""

    name: str
    theirs: object
    ours: object
    remark: str = ""
    """What follows of it, or the fix where it is refused."""
    refused: bool = False

    def __str__(self) -> str:
        text = f"{self.name}: {self.theirs!r} there, {self.ours!r} here"
        return f"{text}; {self.remark}" if self.remark else text


@dataclass(frozen=True)
class UNet:
    """The U-Net of a folder."""

    place: str
    """The folder, or its file where that is a variant."""
    files: tuple[Path, ...]
    config: Mapping[str, Any]
    """With diffusers' defaults for what it leaves out."""
    scheduler: Mapping[str, Any]
    """Config of the pipeline around the folder, like `vae`; empty where there is none."""
    vae: Mapping[str, Any]

    @property
    def latents(self) -> dict[str, Any]:
        """How the latents that it was trained on were scaled, where that is told."""
        scales = ("scaling_factor", "shift_factor")
        return {name: self.vae[name] for name in scales if self.vae.get(name) is not None}

    def differences(self, model: ModelSettings) -> tuple[Difference, ...]:
        return (*self._of_the_network(model), *self._of_the_diffusion(model))

    def _of_the_network(self, model: ModelSettings) -> Iterator[Difference]:
        for name, (theirs, ours) in self._settings(model).items():
            if theirs != ours:
                yield Difference(name, theirs, ours, f"set model.{name} to it", refused=True)
        for name in SAME_FUNCTION:
            theirs, ours = _plain(self.config[name]), defaults()[name]
            if theirs != ours:
                fix = "no setting changes it here: name another checkpoint"
                yield Difference(name, theirs, ours, fix, refused=True)

    def _settings(self, model: ModelSettings) -> dict[str, tuple[object, object]]:
        """What no shape shows but a setting of ours decides: theirs and ours, by its name."""
        # diffusers' own rule: a missing number of heads is in `attention_head_dim`.
        heads = self.config["num_attention_heads"] or self.config["attention_head_dim"]
        blocks = len(self.config["block_out_channels"])
        theirs = tuple(heads) if isinstance(heads, list) else (heads,) * blocks
        ours = model.attention_heads
        if len(theirs) == len(ours):  # a block without attention has no heads
            layers = model.transformer_layers
            theirs = tuple(a if n else b for a, b, n in zip(theirs, ours, layers, strict=True))
        return {
            "attention_heads": (theirs, ours),
            "norm_groups": (self.config["norm_num_groups"], model.norm_groups),
        }

    def _of_the_diffusion(self, model: ModelSettings) -> Iterator[Difference]:
        kind = self.scheduler.get("prediction_type")
        if kind is not None:
            yield Difference("prediction_type", kind, "velocity", "which the first steps relearn")
        if model.time_embedding_scale != DIFFUSION_TIMES:
            ours = model.time_embedding_scale
            yield Difference("time_embedding_scale", DIFFUSION_TIMES, ours, "times are relearned")


def find_unet(place: Path) -> UNet:
    """The U-Net in a folder, or in the folder of its whole pipeline.

    Raises:
        FlowmapsrError: there is none, or its weights are no plain safetensors.
    """
    folder = place / "unet" if (place / "unet").is_dir() else place
    config = read_json(folder / CONFIG)
    kind = config.get("_class_name")
    if kind != CLASS:
        what = f"a diffusers {kind}" if kind else "no run, no model and no diffusers folder"
        raise FlowmapsrError(
            f"{folder} is {what}; give a flowmapsr run or model folder, the folder of a diffusers "
            f"{CLASS}, or a .safetensors file"
        )
    found = find_weights(folder, WEIGHTS)
    place_told = folder if found.variant is None else found.index or found.files[0]
    return _described(folder, config, found.files, place_told)


def unet_around(file: Path) -> UNet | None:
    """The U-Net whose folder a file is in; None where no folder of one is around it."""
    config = read_json(file.parent / CONFIG)
    is_unet = config.get("_class_name") == CLASS
    return _described(file.parent, config, (file,), file) if is_unet else None


def _described(
    folder: Path, config: Mapping[str, Any], files: tuple[Path, ...], place: Path
) -> UNet:
    check_not_quantized(folder, config)
    if not isinstance(config.get("block_out_channels", []), list):
        raise FlowmapsrError(f"{folder / CONFIG}: block_out_channels is no list: download it again")
    around = folder.parent
    is_pipeline = (around / "model_index.json").is_file()
    return UNet(
        str(place),
        files,
        {**defaults(), **config},
        scheduler=read_json(around / "scheduler" / "scheduler_config.json") if is_pipeline else {},
        vae=read_json(around / "vae" / CONFIG) if is_pipeline else {},
    )


def defaults() -> dict[str, Any]:
    """diffusers' settings of a U-Net, which ours has but for `ModelSettings`."""
    from diffusers import UNet2DConditionModel

    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters
    return {name: one.default for name, one in parameters.items() if name != "self"}


def _plain(value: Any) -> Any:
    """A per-block list whose values are equal, as that value."""
    same = isinstance(value, list) and len({repr(one) for one in value}) == 1
    return value[0] if same else value
