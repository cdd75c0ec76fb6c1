"""`training.run` whose checkpoints take seconds, as those of a large network.

They stop in the middle of a file.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from training.checkpoints import writer
from training.run import main

SECONDS = 4.0


def _slowly(chunks: Any) -> Any:
    def slow_chunks(tensors: Any) -> Iterator[Any]:
        whole = chunks(tensors)
        yield next(whole)
        time.sleep(SECONDS)
        yield from whole

    return slow_chunks


if __name__ == "__main__":
    writer.safetensors_chunks = _slowly(writer.safetensors_chunks)
    sys.exit(main())
