"""`training.run` whose second checkpoint cannot be written, as on a disk that is gone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from training.checkpoints.writer import Writing
from training.run import main

FAILING_STEP = 20


def _failing(start: Any) -> Any:
    def start_failing(
        writing: Writing, writer: Any, folder: str, share: Any, state: Any, on_commit: Any
    ) -> None:
        if state.step == FAILING_STEP:
            Path(folder).symlink_to("a disk that is gone")
        start(writing, writer, folder, share, state, on_commit)

    return start_failing


if __name__ == "__main__":
    Writing.__init__ = _failing(Writing.__init__)  # type: ignore[method-assign]
    sys.exit(main())
