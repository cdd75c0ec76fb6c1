"""A photo and a scale to a larger one: `Upscaler.from_pretrained(folder).upscale(image, scale=4,
steps=2)`.

Resizes to the target size as in training and lets the model restore the pixels. Alpha, gray and
orientation are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, TypedDict, Unpack, overload

import cv2
import numpy as np
import psutil
import torch
from PIL import Image

from datagen.degradation.resample import resized
from datagen.errors import FlowmapsrError
from training.inference.color import ColorFix, fix_colors
from training.inference.files import UpscaleSettings, upscaled_file
from training.inference.forms import Form, in_form_of, picture_of
from training.inference.jobs import plan_jobs
from training.inference.levels import bicubic, shares_of, to_levels, top_level
from training.inference.made import publish, remove_leftovers
from training.inference.picture import Picture, colors_everywhere, enlarged_size
from training.inference.precision import loaded
from training.inference.presets import CURVE
from training.inference.streaming import BandUpscaler
from training.inference.tiler import Tiler
from training.inference.trained import trained_resize, usual_color_fix
from training.inference.watch import OnProgress, Watch
from training.monitoring.memory import is_out_of_memory
from training.settings.evaluation import Precision
from training.system_protocol import LoadOptions, Restorer, SystemOf
from training.systems import system_of as default_system_of
from training.weights.model_folder import count_parameters, find_model, model_kind

_BYTES_PER_PIXEL = 60
"""Of a result: what is held of it at once beside the work of the network (measured: 52 to 57)."""

LARGEST_WHOLE = 100_000_000
"""Pixels of the largest result that is held whole."""


class How(TypedDict, total=False):
    """How a picture is enlarged; what is left out is as suits the model."""

    steps: int | None
    """Network evaluations, 1 or more."""
    color_fix: ColorFix | None
    """How the picture gets the colors of the small one, as `fix_colors` says."""
    color_strength: float
    """Share of the color change that is undone, 0 to 1; all of it when left out."""


class Options(How, total=False):
    on_progress: OnProgress | None
    """Called with the share that is done, 0 to 1; what it raises ends the work."""
    cancel: Event | None
    """Once it is set, by any thread, the work ends before its next tile: `UpscalingStopped`."""


class Upscaler:
    """A trained model ready to enlarge pictures, one after the other."""

    def __init__(
        self,
        restorer: Restorer,
        *,
        method: str,
        tiler: Tiler | None = None,
        folder: Path | None = None,
        options: LoadOptions | None = None,
    ) -> None:
        self.restorer = restorer
        self.tiler = tiler or Tiler()
        self._folder, self._options = folder, options
        self.method = method
        """The system's name, for tables of results."""
        self.config = restorer.config
        self._resize = trained_resize(self.config.degradation)
        self.usual_color_fix = usual_color_fix(self.config.degradation)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        lora_scale: float | None = None,
        guidance: float | None = None,
        precision: Precision = "auto",
        seed: int = 0,
        tile: int | None = None,
        max_memory: int | None = None,
        same_everywhere: bool = False,
        system_of: SystemOf = default_system_of,
    ) -> Upscaler:
        """Loads a model folder, or the last finished stage of a run folder.

        Args:
            device: torch device; the first GPU where there is one, else the CPU.
            lora_scale: strength of an adversarial stage's LoRA; the model's own when None.
            guidance: guidance strength w; the model's own when None.
            precision: of the network; `auto` is bf16 on a GPU that computes in it, where the
                model then gives what it gives in fp32, else fp32.
            seed: of the noise that a model may restore with, the same for every picture.
            tile: side of the tiles of large pictures, pixels; the largest that fits into memory
                when None, and none where the picture fits.
            max_memory: what this process may hold on the device, bytes; most of what is free when
                None.
            same_everywhere: tiles do not depend on the memory of this machine, so that results are
                the same wherever they are made.

        Raises:
            FlowmapsrError: no model there, another format version, weights that do not fit, or a
                strength that the model does not have.
        """
        folder = find_model(path)
        system = system_of(model_kind(folder))
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        options = LoadOptions(
            lora_scale, guidance, precision, seed, tile, max_memory, same_everywhere
        )
        tiler = Tiler(tile=options.side, max_memory=max_memory, fixed=same_everywhere)
        return cls(
            loaded(partial(system.load, folder, place), options, place, tiler),
            method=system.name,
            tiler=tiler,
            folder=folder,
            options=options,
        )

    def parameters(self) -> int:
        """How many the model folder holds."""
        assert self._folder is not None, "of a loaded model only"
        return count_parameters(self._folder)

    def digest(self) -> str:
        """Of the files of the model and of how it was loaded, by SHA-256."""
        assert self._folder is not None and self._options is not None, "of a loaded model only"
        options = replace(self._options, max_memory=None, same_everywhere=False)
        total = hashlib.sha256(repr(options).encode())
        for path in sorted(self._folder.iterdir()):
            if path.name == CURVE or path.name.startswith("."):  # decides about no pixel
                continue
            with path.open("rb") as file:
                total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    @overload
    def upscale(self, image: Form, *, scale: float, **options: Unpack[Options]) -> Form: ...

    @overload
    def upscale(
        self, image: Sequence[Form], *, scale: float, **options: Unpack[Options]
    ) -> list[Form]: ...

    def upscale(
        self,
        image: Any,
        *,
        scale: float,
        on_progress: OnProgress | None = None,
        cancel: Event | None = None,
        **how: Unpack[How],
    ) -> Any:
        """Pictures in memory, `scale` times as large, each in the form it was given in: round(h *
        scale) rows of round(w * scale) pixels. An image of Pillow comes upright and in sRGB.

        Args:
            image: an array of uint8 or uint16 in sRGB, gray (h, w), RGB (h, w, 3) or with alpha
                (h, w, 4); an image of Pillow; or a list of these.
            scale: 1 or more.
            on_progress, cancel, how: see `Options`.

        Raises:
            FlowmapsrError: no picture, or one too large for this machine's memory.
            UpscalingStopped: `cancel` was set.
        """
        single = isinstance(image, np.ndarray | Image.Image)
        images: Any = [image] if single else list(image)
        watch, results = Watch(on_progress, cancel, pictures=len(images)), []
        for given in images:
            picture = self.upscale_picture(picture_of(given), scale=scale, watch=watch, **how)
            results.append(in_form_of(picture, given))
            watch.end()
        return results[0] if single else results

    def upscale_file(
        self,
        source: str | Path,
        target: str | Path,
        *,
        scale: float,
        quality: int | None = None,
        strip_gps: bool = False,
        on_progress: OnProgress | None = None,
        cancel: Event | None = None,
        **how: Unpack[How],
    ) -> list[str]:
        """A photo's file to an enlarged one, paths or addresses in S3, as `flowmapsr upscale` does:
        the target's name says the format, and all that it can hold of the photo is kept. It appears
        when it is whole, in place of what was there.

        Args:
            quality: of JPEG, WebP and AVIF, 1 to 100.
            strip_gps: leaves out where the photo was taken.
            on_progress, cancel, how: see `Options`.

        Returns:
            What of the photo was not kept, for people.

        Raises:
            FlowmapsrError: no picture, one too large, or no place to write to.
            UpscalingStopped: `cancel` was set; nothing is written.
        """
        plan = plan_jobs(str(source), str(target), overwrite=True, skip_existing=False)
        settings = UpscaleSettings(
            scale=scale,
            seed=self._options.seed if self._options else 0,
            quality=quality,
            strip_gps=strip_gps,
            **how,
        )
        remove_leftovers(plan.jobs)
        watch = Watch(on_progress, cancel)
        made = upscaled_file(plan.jobs[0], self, settings, watch=watch)
        publish(plan.jobs[0], made.photo, made.write, "")
        watch.end()
        return list(made.notes)

    def enlarge(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """RGB uint8 or uint16 (h, w, 3) at (width, height), resized as the model's LQ was in
        training."""
        if self._resize == "bicubic":
            return bicubic(image, size)
        result = resized(image.astype(np.float32), size, self._resize)
        return result.round().clip(0, top_level(image)).astype(image.dtype)

    def restore(self, image: np.ndarray, *, steps: int | None = None) -> np.ndarray:
        """An LQ image already at its target size, RGB uint8 or uint16 (H, W, 3) -> its HQ estimate,
        whose colors are the network's."""
        return to_levels(self._restored(image, steps, Watch()), image.dtype)

    def _upscaled(
        self,
        image: np.ndarray,
        *,
        scale: float,
        steps: int | None,
        color_fix: ColorFix | None,
        color_strength: float,
        watch: Watch,
    ) -> np.ndarray:
        """RGB uint8 or uint16 (h, w, 3) -> (round(h * scale), round(w * scale), 3)."""
        lq = self.enlarge(image, enlarged_size(image, scale))
        fixed = fix_colors(  # holds the one copy of either picture
            self._restored(lq, steps, watch),
            np.divide(lq, top_level(lq), dtype=np.float32),
            color_fix or self.usual_color_fix,
            scale=scale,
            strength=color_strength,
        )
        return to_levels(fixed, image.dtype)

    @torch.inference_mode()
    def _restored(self, image: np.ndarray, steps: int | None, watch: Watch) -> np.ndarray:
        """RGB uint8 or uint16 (H, W, 3) -> float32 in [0, 1]."""
        height, width = image.shape[:2]
        margin, multiple = self.restorer.margin, self.restorer.size_multiple
        around = [
            (margin, margin + -(length + 2 * margin) % multiple) for length in (height, width)
        ]
        padded = np.pad(image, [*around, (0, 0)], mode="reflect" if margin else "edge")
        tensor = torch.from_numpy(padded).to(self.restorer.device)
        pixels = tensor.permute(2, 0, 1)[None].float().div_(top_level(image) / 2).sub_(1)
        steps = steps or self.restorer.usual_steps
        watch.begin(steps)
        restored = self.restorer(
            pixels,
            steps=steps,
            in_tiles=partial(self.tiler, on_part=watch.part),
            on_step=watch.step,
        )
        return shares_of(restored[0, :, margin : margin + height, margin : margin + width])

    def upscale_picture(
        self,
        picture: Picture,
        *,
        scale: float,
        steps: int | None = None,
        color_fix: ColorFix | None = None,
        color_strength: float = 1.0,
        watch: Watch | None = None,
    ) -> Picture:
        """As `upscale`; gray stays gray but where the model makes colors, and transparency is
        enlarged by bicubic interpolation. `watch` is told of the network's work.

        Raises:
            FlowmapsrError: it is too large for this machine's memory.
        """
        size = enlarged_size(picture.rgb, scale)
        colors, alpha = picture.rgb, picture.alpha
        try:
            if not self._fits(size):
                raise MemoryError
            if alpha is not None:
                colors = colors_everywhere(colors, alpha)
                alpha = bicubic(alpha, size)
            rgb = self._upscaled(
                colors,
                scale=scale,
                steps=steps,
                color_fix=color_fix,
                color_strength=color_strength,
                watch=watch or Watch(),
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            height, width = colors.shape[:2]
            raise FlowmapsrError(
                f"{width}x{height} at scale {scale:g} does not fit into memory; use a smaller "
                "scale or cut the picture"
            ) from error
        gray = picture.gray and self.usual_color_fix != "off"
        if gray:
            rgb = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return replace(picture, rgb=rgb, alpha=alpha, gray=gray)

    def is_streamed(self, size: tuple[int, int]) -> bool:
        """Whether a result of (width, height) is made by `upscale_bands`, if its format can be
        written so."""
        if self.restorer.parts() is None:
            return False
        if self._options is not None and self._options.same_everywhere:  # bands round differently
            return size[0] * size[1] > LARGEST_WHOLE
        return size[0] * size[1] > LARGEST_WHOLE or not self._fits(size)

    def _fits(self, size: tuple[int, int]) -> bool:
        """Whether memory holds such a result beside the work of the network."""
        return size[0] * size[1] * _BYTES_PER_PIXEL <= psutil.virtual_memory().available

    def upscale_bands(
        self, picture: Picture, *, scale: float, watch: Watch | None = None, **how: Unpack[How]
    ) -> Iterator[Picture]:
        """As `upscale_picture`, in bands of rows from top to bottom, of which memory needs to hold
        one and no more.

        Raises:
            FlowmapsrError: the model cannot restore in parts, or memory is too small even so.
        """
        bands = BandUpscaler(self.restorer, self.tiler, self._resize, self.usual_color_fix)
        return bands(picture, scale=scale, watch=watch or Watch(), **how)
