"""A photo and a scale to a larger one: `Upscaler.from_pretrained(folder).upscale(image, scale=4,
steps=2)`. Loads models, and takes pictures as programs and files have them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Unpack, overload

import numpy as np
import torch
from PIL import Image

from datagen.photos.decode import MOST_PIXELS
from training.inference.enlarger import Enlarger
from training.inference.files import UpscaleSettings, read_file, upscaled_file
from training.inference.how import How, Options
from training.inference.jobs import plan_jobs
from training.inference.made import publish, remove_leftovers
from training.inference.pictures.forms import Form, in_form_of, picture_of
from training.inference.precision import loaded
from training.inference.tiles.tiler import Tiler
from training.inference.watch import OnProgress, Watch
from training.restorer_protocol import LoadOptions, Restorer
from training.settings.evaluation import Backend, Precision
from training.system_protocol import SystemOf
from training.systems import system_of as default_system_of
from training.weights.model_folder import (
    count_parameters,
    digest_of_files,
    find_model,
    model_kind,
)


class Upscaler(Enlarger):
    """A trained model of a folder, ready to enlarge pictures in memory and in files."""

    def __init__(
        self,
        restorer: Restorer,
        *,
        method: str,
        tiler: Tiler | None = None,
        folder: Path | None = None,
        options: LoadOptions | None = None,
    ) -> None:
        super().__init__(restorer, tiler)
        self._folder, self._options = folder, options
        self.method = method
        """The system's name, for tables of results."""

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
        backend: Backend = "torch",
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
            backend: what runs the network of flow maps on pictures without tiles; `compile` is
                torch.compile, which takes minutes for the first pictures, and on a GPU CUDA graphs,
                for calls from one thread; `openvino` takes less time on CPUs, and needs the extra
                of that name.

        Raises:
            FlowmapsrError: no model there, another format version, weights that do not fit, or a
                strength that the model does not have.
        """
        folder = find_model(path)
        system = system_of(model_kind(folder))
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        options = LoadOptions(
            lora_scale, guidance, precision, seed, tile, max_memory, same_everywhere, backend
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
        of_files = digest_of_files(self._folder)
        return hashlib.sha256(f"{options!r} {of_files}".encode()).hexdigest()

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
        max_megapixels: float = MOST_PIXELS / 1e6,
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
            max_megapixels: of the photo; files with more may be made to fill memory.
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
            max_megapixels=max_megapixels,
            **how,
        )
        remove_leftovers(plan.jobs)
        watch = Watch(on_progress, cancel)
        photo = read_file(plan.jobs[0], settings)
        made = upscaled_file(photo, plan.jobs[0], self, settings, watch=watch)
        publish(plan.jobs[0], made.photo, made.write, "")
        watch.end()
        return list(made.notes)
