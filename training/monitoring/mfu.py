"""FLOPs of training steps, and MFU: their share of the peak of the GPU's data sheet.

FLOPs are those of `torch.utils.flop_counter`: a multiplication and an addition are two, and only
matrix products, convolutions and attention count.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from training.data.loader import Batch

Kind = tuple[str, int, int]
"""Kind of step, and height and width of its latents."""

_aten = torch.ops.aten
_FORMULAS: dict[Any, Callable[..., int]] = {
    # torch has formulas only for the attention kernels of GPUs; those of CPUs take the same shapes.
    _aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
    **flop_registry,
}


class FlopCounter(TorchDispatchMode):
    """Counts FLOPs with torch's formulas.

    torch's own `FlopCounterMode` decomposes some kernels, such as `silu_backward`, which changes
    bits of the gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is None and torch.is_inference_mode_enabled():
            # There, layers arrive whole; formulas exist for what they are made of.
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


class FlopMeter:
    """FLOP/s of rank 0.

    Counts the first step of each kind; of a compiled network the second, as the first one compiles.
    Later steps of that kind are taken to cost as much per sample. Samples of a step may differ in
    cost (only some are distilled), so that a step with few samples gives a rough figure.
    """

    def __init__(
        self, *, peak: Peak | None, compiled: bool, checkpointed: bool, enabled: bool = True
    ) -> None:
        """
        Args:
            compiled: whether a part of the network goes through `torch.compile`.
            checkpointed: whether forward passes are computed again in the backward pass; these
                count too, which makes the share a hardware utilization (HFU).
            enabled: False on other ranks, which count nothing.
        """
        self.peak, self.compiled, self.enabled = peak, compiled, enabled
        self.share_name = "perf/hfu" if checkpointed else "perf/mfu"
        self.per_image: dict[Kind, float] = {}
        """FLOPs per sample of the kinds counted so far."""
        self._seen: set[Kind] = set()
        self._flops = self._counted_images = 0
        self._start()

    def _start(self) -> None:
        self._images: Counter[Kind] = Counter()
        self._since = time.monotonic()

    @contextmanager
    def micro_step(self, step_kind: str, batch: Batch) -> Iterator[None]:
        """The block is a micro step on `batch`."""
        kind = (step_kind, *batch.size[1])
        # A batch without weight only keeps this worker in step with the others.
        images = len(batch.keys) if batch.micro.weight else 0
        is_compiled = kind in self._seen or not self.compiled
        is_to_count = self.enabled and images and is_compiled and kind not in self.per_image
        with counted_flops(compiled=self.compiled) if is_to_count else nullcontext() as counter:
            yield
        if counter is not None:
            self._flops += counter.flops
            self._counted_images += images
        self._images[kind] += images
        if batch.micro.is_last:
            self._seen.add(kind)
            if self._counted_images:
                self.per_image[kind] = self._flops / self._counted_images
            self._flops = self._counted_images = 0

    def metrics(self) -> dict[str, float]:
        """`perf/tflops` since the last call, and its share of the peak, if known.

        Empty while a kind of step since then has not been counted; the next call covers it.
        """
        images, elapsed = self._images, time.monotonic() - self._since
        if not images.keys() <= self.per_image.keys():
            return {}
        flops = sum(self.per_image[kind] * count for kind, count in images.items())
        self._start()
        tflops = flops / elapsed / 1e12
        share = {} if self.peak is None else {self.share_name: tflops / self.peak.tflops}
        return {"perf/tflops": tflops} | share


@contextmanager
def counted_flops(*, compiled: bool) -> Iterator[FlopCounter]:
    """Counts the FLOPs of the block, recomputed forward passes included; what is compiled must have
    run before."""
    # torch never compiles a function that it first sees while FLOPs are counted.
    eager = torch.compiler.set_stance("eager_on_recompile") if compiled else nullcontext()
    with eager, FlopCounter() as counter:
        yield counter


class Peak(NamedTuple):
    """Peak rate of one device, in 10^12 FLOP/s."""

    tflops: float
    source: str

    def tags(self) -> dict[str, str]:
        return {"peak_tflops": f"{self.tflops:.4g} ({self.source})"}


_GPUS = {
    "B200": (2250, 75),
    "H200 NVL": (835, 60),
    "H200": (989, 67),
    "H100 NVL": (835, 60),
    "H100 PCIe": (756, 51),
    "H100": (989, 67),
    "A100": (312, 19.5),
    "L40S": (362, 91.6),
    "L40": (181, 90.5),
    "L4": (121, 30.3),
    "A40": (150, 37.4),
    "A10": (125, 31.2),
    "RTX 4090": (165, 82.6),
    "RTX 3090": (71, 35.6),
}
"""Dense 10^12 FLOP/s from the data sheets: bf16 products with fp32 sums, and fp32 without TF32. By
words of the CUDA device name; special models before general ones."""


def gpu_peak(name: str, precision: str) -> Peak | None:
    """The peak of a GPU by its name, such as `NVIDIA H100 80GB HBM3`, if it is in the table."""
    words = name.replace("-", " ").split()
    for model, (bf16, fp32) in _GPUS.items():
        if all(word in words for word in model.split()):
            tflops = bf16 if precision == "bf16" else fp32
            return Peak(tflops, f"data sheet of {model}, dense {precision}")
    return None
