"""Lists and removes the folders of a stage's checkpoints, on a disk or S3.

A folder is a checkpoint if it contains its commit, which is written last and removed first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from datagen.errors import NotFoundError
from datagen.io import storage
from training.checkpoints.records import COMMIT, Commit

_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class StepFolder:
    """The files of one step."""

    uri: str
    step: int
    files: set[str]
    """Their names."""

    @property
    def is_committed(self) -> bool:
        return COMMIT in self.files

    def remove(self) -> None:
        """Deletes the commit first, so that an interrupted removal leaves no checkpoint."""
        for name in sorted(self.files, key=lambda name: name != COMMIT):
            storage.delete(storage.join(self.uri, name))
        storage.delete_empty_folder(self.uri)


@dataclass(frozen=True)
class CheckpointFolders:
    """All folders in the location of a stage's checkpoints."""

    uri: str
    keep: int
    keep_every_steps: int | None

    def of_step(self, step: int) -> str:
        return storage.join(self.uri, f"step-{step:06d}")

    def all(self) -> list[StepFolder]:
        """The folders of all steps, complete or not, ordered by step."""
        files: dict[int, set[str]] = {}
        try:
            for entry in storage.scan(self.uri):
                folder, _, name = entry.uri.removeprefix(self.uri).strip("/").partition("/")
                if match := _NAME.fullmatch(folder):
                    files.setdefault(int(match[1]), set()).add(name)
        except NotFoundError:
            return []
        return [StepFolder(self.of_step(step), step, files[step]) for step in sorted(files)]

    def remove_leftovers(self) -> list[StepFolder]:
        """Removes incomplete checkpoints of dead writers, and returns the complete ones; only call
        it while nothing is written."""
        removed = storage.remove_leftovers(self.uri)
        folders = self.all()
        for folder in folders:
            if not folder.is_committed:
                folder.remove()
        for parent in {uri.rpartition("/")[0] for uri in removed}:
            storage.delete_empty_folder(parent)
        return [folder for folder in folders if folder.is_committed]

    def tidy(self, commit: Commit) -> dict[int, str]:
        """After a commit: removes older checkpoints than the last `keep`, but none of a step that
        `keep_every_steps` divides and none of the best, and every leftover. Returns why each step
        that is left is kept."""
        folders = self.all()
        steps = [folder.step for folder in folders if folder.is_committed]
        kept = dict.fromkeys(steps[-self.keep :], "one of the last")
        if self.keep_every_steps:
            every = f"every {self.keep_every_steps} steps"
            kept |= {step: every for step in steps if step % self.keep_every_steps == 0}
        best = commit.state.best.items()
        kept |= {one.step: f"best {metric}" for metric, one in best if one.step in steps}
        for folder in folders:
            if folder.step not in kept or not folder.is_committed:
                folder.remove()
            elif folder.step == commit.state.step:
                for name in folder.files - {COMMIT, *(record.name for record in commit.files)}:
                    storage.delete(storage.join(folder.uri, name))
        return kept
