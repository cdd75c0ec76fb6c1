"""How fast is it, and where does the time go? Tables by part, on the screen and in OUT.

steps: the 2.43 B network's training step by objective, size and micro batch; adversarial: both
turns of that stage; vae: encoding and decoding; inference: pictures in 1, 2 and 4 evaluations
beside UNet and VAE alone; tiles: what batches of them and CUDA graphs gain; compiled: what
torch.compile gains in training. A row that does not fit into memory or time is named, and the next
one comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tests.benchmarks.gpu.clock import Clock
from tests.benchmarks.gpu.measure_pictures import PictureParts
from tests.benchmarks.gpu.measure_steps import StepParts
from tests.benchmarks.gpu.measure_tiles import TileParts
from tests.benchmarks.gpu.options import Options, device
from tests.benchmarks.gpu.results import Results
from tests.benchmarks.one_step import free_memory, join_as_only_worker

PARTS = ("steps", "adversarial", "vae", "inference", "tiles", "compiled")


def measure(options: Options, parts: Sequence[str], *, limit: float) -> int:
    """Measures these parts; the exit code.

    Args:
        limit: seconds after which no further row is begun.
    """
    join_as_only_worker()
    results, clock = Results(options.out, "measure"), Clock(limit)
    of_steps = StepParts(results, clock, options.tiny)
    of_pictures = PictureParts(results, clock, options.work, options.tiny)
    all_parts: dict[str, Callable[[], None]] = {
        "steps": of_steps.steps,
        "adversarial": of_steps.adversarial,
        "vae": of_pictures.vae,
        "inference": of_pictures.inference,
        "tiles": TileParts(results, clock, options.tiny).tiles,
        "compiled": of_steps.compiled,
    }
    for name in parts:
        start = clock.seconds
        with results.attempt(name):
            clock.require()
            all_parts[name]()
        free_memory(device())
        results.say(f"\n{name}: {clock.seconds - start:.0f} s; {clock.seconds:.0f} s in all")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return results.exit_code()
