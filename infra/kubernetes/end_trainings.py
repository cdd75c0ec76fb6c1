"""What a pod does before it ends: a training that it has a part in saves a checkpoint and ends, and
so do commands that run in the pod.

    python -m infra.kubernetes.end_trainings

Ray hands SIGTERM on to no training, so Kubernetes would kill it. Returns when all have ended;
`terminationGracePeriodSeconds` of the pod is the limit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from training.run_dir.paths import RunPaths

log = logging.getLogger(__name__)


def end_trainings(processes: Iterable[psutil.Process]) -> None:
    """Asks the trainings and commands among the processes of a pod to end, and waits for it."""
    asked = []
    for process in processes:
        with suppress(psutil.Error):  # another user's, or gone
            runs = _trained_runs(process)
            for run in runs:
                log.info("the training of %s saves a checkpoint and ends", run)
                RunPaths(run).stop.touch()
            if _is_command(process):
                log.info("ends: %s", " ".join(process.cmdline()))
                process.terminate()
            elif not runs:
                continue
            asked.append(process)
    psutil.wait_procs(asked)


def _trained_runs(process: psutil.Process) -> set[Path]:
    """The folders of the runs whose worker this process is: it has its log open."""
    logs = [Path(file.path) for file in process.open_files()]
    folders = {path.parents[1] for path in logs if path.match("logs/worker-*.log")}
    return {folder for folder in folders if RunPaths(folder).recipe.is_file()}


def _is_command(process: psutil.Process) -> bool:
    """Whether it is the command line of flowmapsr, such as the entry point of a RayJob."""
    return any(Path(word).name == "flowmapsr" for word in process.cmdline()[:2])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    end_trainings(psutil.process_iter())
