"""Settings of an evaluation: which photos it restores, at which scales and in how many steps, and
what it measures."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from datagen.pair_settings import PairSettings
from datagen.records import Execution, Location, Settings

Precision = Literal["auto", "fp32", "bf16"]
Backend = Literal["torch", "compile", "openvino"]
ColorFix = Literal["wavelet", "lab", "off"]
"""What a result takes from its LQ: `wavelet` everything coarse, `lab` the coarse hues, and of the
lightness only what is coarser still, `off` nothing."""
PictureMetricName = Literal[
    "psnr_rgb",
    "psnr_y",
    "ssim_rgb",
    "ssim_y",
    "niqe",
    "lpips_alex",
    "lpips_vgg",
    "dists",
    "ids_degrees",
    "maniqa_koniq",
    "maniqa_pipal",
    "musiq_koniq",
    "clipiqa",
]
SetMetricName = Literal["fid_whole", "fid_patches", "kid_whole", "kid_patches"]
MetricName = PictureMetricName | SetMetricName
Border = Annotated[int, Field(ge=0)] | Literal["scale"]
"""Pixels cut from every edge; `scale` cuts as many as the scale."""
Luma = Literal["ycbcr", "yiq"]
"""`ycbcr`: BT.601 from 16 to 235, as MATLAB and BasicSR; `yiq`: NTSC from 0 to 255, as pyiqa."""
Preset = Literal["plain", "paper", "basicsr", "pyiqa"]


class Convention(NamedTuple):
    """How PSNR, SSIM and NIQE are measured; all other metrics see the whole picture."""

    luma: Luma = "ycbcr"
    border: Border = 0
    pyiqa_ssim: bool = False
    """SSIM of whole levels, its contrast part at least 0 at every pixel."""


PRESETS: dict[Preset, Convention] = {
    "plain": Convention(),
    "paper": Convention(pyiqa_ssim=True),
    "basicsr": Convention(border="scale"),
    "pyiqa": Convention(luma="yiq", pyiqa_ssim=True),
}


SystemName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def _on_this_machine(place: str) -> str:
    if "://" in place:
        raise ValueError(f"{place} is not on this machine; copy it here")
    return place


class Interpolation(Settings):
    """LQ pictures enlarged without a network."""

    kind: Literal["bicubic", "lanczos"]

    @property
    def name(self) -> str:
        return self.kind


class SpandrelNetwork(Settings):
    """A checkpoint of any architecture that spandrel knows, such as ESRGAN, SwinIR, HAT or DAT."""

    kind: Literal["spandrel"]
    name: SystemName = Field(examples=["swinir"])
    """Of the network, for the table."""
    file: Location = Field(examples=["/weights/swinir-x4.safetensors"])
    """Its weights on this machine, as safetensors."""

    @field_validator("file")
    @classmethod
    def _no_pickle(cls, file: str) -> str:
        if not file.endswith(".safetensors"):
            raise ValueError(
                f"{file} is no .safetensors file; .pth and .ckpt are pickles, which run whatever "
                "is in them, and are never opened: convert one that you trust with "
                "torch.load(FILE, weights_only=True) and safetensors.torch.save_file"
            )
        return _on_this_machine(file)


class NcnnNetwork(Settings):
    """A network of ncnn, as Real-ESRGAN's and upscayl's are published; runs on the CPU."""

    kind: Literal["ncnn"]
    name: SystemName = Field(examples=["real-esrgan"])
    """Of the network, for the table."""
    folder: Location = Field(examples=["/weights/realesrgan-x4plus"])
    """On this machine, with one `.param` and its `.bin`; or one of several `.param`."""

    _check = field_validator("folder")(_on_this_machine)


class Pictures(Settings):
    """Pictures that another system made of the LQ pictures that `evaluate --output` writes."""

    kind: Literal["pictures"]
    name: SystemName = Field(examples=["osediff"])
    """Of the system, for the table."""
    folder: Location = Field(examples=["/outputs/osediff"])
    """With a folder `x4` ... for each scale, or the pictures themselves; named as the LQ."""


Baseline = Annotated[
    Interpolation | SpandrelNetwork | NcnnNetwork | Pictures, Field(discriminator="kind")
]


SOURCES = ("photos", "pairs", "no_reference")
"""Fields that say what is evaluated; one of them is given."""


class EvaluationSettings(Settings):
    """Held-out photos are degraded by the chain of the dataset at fixed scales, or come with their
    LQ, or are LQ without an original, and are restored."""

    photos: Location | None = Field(examples=["/path/to/held-out-photos"])
    """Folder of held-out photos that are degraded; null, or left out, with one of the next two."""
    pairs: PairSettings | None = None
    """Held-out photos whose LQ is given; nothing is degraded."""
    no_reference: Location | None = Field(None, examples=["/path/to/RealSet65"])
    """Folder of LQ pictures without originals: only metrics that need none are measured."""
    scales: Annotated[tuple[Annotated[float, Field(ge=1)], ...], Field(min_length=1)] | None = None
    """Factors by which photos are reduced and enlarged again, or pictures without originals are
    enlarged, 1 keeps their size; null takes 4 and 8. Those of pairs follow from their sizes."""
    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 4), min_length=1)
    """Numbers of network evaluations for each photo."""
    baselines: tuple[Baseline, ...] = ()
    """What the model is compared with beside bicubic interpolation."""
    metrics: tuple[MetricName, ...] = ()
    """What is measured beside PSNR and SSIM on RGB, or NIQE where there are no originals."""
    metric_weights: Execution[Location | None] = None
    """Folder of the networks that metrics need, as safetensors; null takes the downloads."""
    convention: Preset = "plain"
    """How PSNR, SSIM and NIQE are measured: on BT.601 luma without a cut border (`plain`), or as by
    pyiqa on BT.601 (`paper`), BasicSR (`basicsr`) or pyiqa's defaults (`pyiqa`)."""
    border: Border | None = None
    """Pixels cut from every edge before PSNR, SSIM and NIQE, or `scale`; null as the convention."""
    luma: Luma | None = None
    """Of PSNR, SSIM and NIQE; null as the convention."""
    seed: int = Field(0, ge=0)
    """Seed of the degradations, and of the noise that a model restores with."""
    lora_scale: float | None = Field(None, ge=0)
    """Strength of the LoRA of an adversarial model; null takes the model's default."""
    guidance: float | None = Field(None, ge=0)
    """Guidance strength w of a model that takes it as an input; null takes the model's default."""
    color_fix: ColorFix = "off"
    """How results get the colors of their LQ, as `upscale` does it; `off` measures the network's
    own, as papers do."""
    precision: Precision = "auto"
    """Of the network; `auto` is bf16 on a GPU that computes in it, else fp32."""

    @model_validator(mode="before")
    @classmethod
    def _no_photos(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "photos" in values:
            return values
        others = values.get("pairs") or values.get("no_reference")
        return {**values, "photos": None} if others else values

    @field_validator("baselines")
    @classmethod
    def _names_differ(cls, baselines: tuple[Baseline, ...]) -> tuple[Baseline, ...]:
        names = [one.name for one in baselines]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} is given twice; name each baseline differently")
        for one in baselines:
            if not isinstance(one, Interpolation) and one.name in ("bicubic", "lanczos"):
                raise ValueError(f"{one.name} is the name of an interpolation; choose another one")
        return baselines

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"give one of {', '.join(SOURCES)}: what is evaluated")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; leave all but one out")
        if self.pairs is not None and self.scales is not None:
            raise ValueError("the scales of pairs follow from their sizes; leave scales out")
        return self

    @property
    def factors(self) -> tuple[float, ...]:
        """The scales of photos that are degraded, and of pictures without originals."""
        return self.scales or (4.0, 8.0)

    @property
    def place(self) -> str:
        """Where the photos lie, for people."""
        if self.pairs is not None:
            return f"{self.pairs.hq} and {self.pairs.lq}"
        return self.photos or self.no_reference or ""

    @property
    def has_originals(self) -> bool:
        """Whether results can be compared with what they should be."""
        return self.no_reference is None

    def conventions(self) -> Convention:
        """Those of the preset, but for what is set beside it."""
        preset = PRESETS[self.convention]
        return Convention(
            luma=preset.luma if self.luma is None else self.luma,
            border=preset.border if self.border is None else self.border,
            pyiqa_ssim=preset.pyiqa_ssim,
        )
