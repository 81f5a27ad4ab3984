"""Places for a classifier's checkpoints: a file, an MLflow run, or nowhere.

A place is a value, which each training opens.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mltrain.checkpoint import checkpoint_file
from mltrain.errors import UsageError
from mltrain.manager import CheckpointManager
from mltrain.run.checkpoints import open_checkpoints
from mltrain.run.naming import is_run_id
from mltrain.run.opening import open_run
from mltrain.trainer.ports import NullSaver, NullTracker, Saver, Tracker

State = dict[str, Any]


class Opened(NamedTuple):
    """An open place: saver, tracker, and a function that returns the state to resume from."""

    saver: Saver
    tracker: Tracker
    resume: Callable[[], State]


class Place(Protocol):
    """A place for checkpoints."""

    def read(self) -> State:
        """Return the newest state, verified, and change nothing."""
        ...

    def opened(self) -> AbstractContextManager[Opened]:
        """Open the place for a training."""
        ...


def resumed(word: str | Path | bool | None, checkpoint_path: str | Path | None) -> str | Path | None:
    """Return the place to resume from; ``True`` means ``checkpoint_path``, if it has a checkpoint.

    Raises:
        UsageError: it is ``True`` without a ``checkpoint_path``.
    """
    if word is None or word is False:
        return None
    if word is not True:
        return word
    if checkpoint_path is None:
        raise UsageError("resume_from_checkpoint=True names no checkpoint. Expected checkpoint_path with it.")
    own = place(checkpoint_path)
    there = bool(open_checkpoints(own.id).all()) if isinstance(own, Run) else Path(checkpoint_path).exists()
    return checkpoint_path if there else None


def place(word: str | Path | None) -> Place:
    """Return the named place: a run by its id or the first digits of it, else a file. An existing file has precedence."""
    if word is None:
        return Nowhere()
    if isinstance(word, str) and is_run_id(word) and not Path(word).exists():
        return Run(word)
    return File(Path(word))


@dataclass(frozen=True)
class Nowhere:
    """No place: the state is only in memory."""

    def read(self) -> State:
        """Raise UsageError, because there is nothing to read."""
        raise UsageError("There is no checkpoint to resume from: give a file or the id of a run.")

    @contextmanager
    def opened(self) -> Iterator[Opened]:
        """Open a place that saves nothing."""
        yield Opened(NullSaver(), NullTracker(), self.read)

    def __str__(self) -> str:
        return "nowhere"


@dataclass(frozen=True)
class File:
    """A file that every checkpoint replaces, without a server."""

    path: Path

    def read(self) -> State:
        """Return the state in the file; see :func:`mltrain.checkpoint.checkpoint_file.read`."""
        return checkpoint_file.read(self.path)

    @contextmanager
    def opened(self) -> Iterator[Opened]:
        """Open the file for a training; every save replaces it atomically."""
        yield Opened(self, NullTracker(), self.read)

    def save(self, state: Mapping[str, Any], **facts: Any) -> None:
        """Replace the file."""
        checkpoint_file.write(self.path, state)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Run:
    """An MLflow run, with checkpoints as artifacts and logged metrics."""

    id: str

    def read(self) -> State:
        """Return the newest state, without becoming the run's writer.

        Raises:
            RunNotFound, TrackingError, NoCheckpoint: there is no such run, or it has no intact checkpoint.
        """
        return open_checkpoints(self.id).load("latest")[1]

    @contextmanager
    def opened(self) -> Iterator[Opened]:
        """Become the run's writer.

        Raises:
            RunNotFound, RunHeld, TrackingError: the run cannot be written to.
        """
        run = open_run(self.id)
        with CheckpointManager(run, metric="val/loss", mode="min") as manager:

            def resume() -> State:
                found = manager.read("latest")
                if found is None:
                    raise UsageError(f"Run {self.id} has no checkpoint to resume from.")
                manifest, state = found
                manager.continue_from(manifest)
                run.continue_exactly_after(manifest.step)
                return state

            yield Opened(manager, run, resume)

    def __str__(self) -> str:
        return self.id
