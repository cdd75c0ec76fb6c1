"""`training.run` whose second checkpoint cannot be written, as on a disk that is gone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from training.checkpoints.writer import Writer
from training.run import main

FAILING_STEP = 20


def _failing(start: Any) -> Any:
    def start_failing(writer: Writer, folder: str, share: Any, state: Any, on_commit: Any) -> Any:
        if state.step == FAILING_STEP:
            Path(folder).symlink_to("a disk that is gone")
        return start(writer, folder, share, state, on_commit)

    return start_failing


if __name__ == "__main__":
    Writer.start = _failing(Writer.start)  # type: ignore[method-assign]
    sys.exit(main())
