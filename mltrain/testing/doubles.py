"""In-memory doubles of a trainer's tracker, saver and stop request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mltrain.checkpoint.codec import decode, encode
from mltrain.checkpoint.finite import nonfinite
from mltrain.checkpoint.manifest import Kind
from mltrain.checkpoint.snapshot import HostBuffers, snapshot
from mltrain.errors import MltrainError, NonFiniteLoss
from mltrain.history import History
from mltrain.state import Progress


class MemoryTracker:
    """A tracker that keeps all records in memory.

    Attributes:
        points: key to step to value.
        pictures: (name, step) to picture.
        rows: the table of epochs.
        overtaken: set it to simulate that another process has taken the run over.
    """

    def __init__(self) -> None:
        self.points: dict[str, dict[int, float]] = {}
        self.pictures: dict[tuple[str, int], Any] = {}
        self.rows: list[dict[str, float | int]] = []
        self.overtaken = False

    def log_metrics(self, values: Mapping[str, float], step: int, *, compared: bool = True) -> None:
        """Keep the points of one step, except time measurements."""
        for key, value in values.items() if compared else ():
            self.points.setdefault(key, {})[step] = float(value)

    def log_pictures(self, pictures: Mapping[str, Any], step: int, epoch: int) -> None:
        """Keep the pictures of one step."""
        self.pictures |= {(name, step): picture for name, picture in pictures.items()}

    def log_epoch(self, history: History) -> None:
        """Keep the table."""
        self.rows = [dict(row) for row in history.rows]


@dataclass(frozen=True)
class Kept:
    """A checkpoint's files in memory, without the manifest."""

    step: int
    epoch: int
    kind: Kind
    metrics: Mapping[str, float]
    files: Mapping[str, bytes]

    def parts(self) -> dict[str, Any]:
        """Return the state, decoded like a real checkpoint."""
        return decode(self.files)


class MemorySaver:
    """A saver that keeps encoded checkpoints in memory.

    Attributes:
        checkpoints: all checkpoints, oldest first.
        failure: the error of the newest save, if its weights or optimizer state are not finite.
    """

    def __init__(self) -> None:
        self.checkpoints: list[Kept] = []
        self.failure: MltrainError | None = None

    def save(
        self,
        state: Mapping[str, Any],
        *,
        step: int,
        epoch: int,
        metrics: Mapping[str, float],
        kind: Kind,
        extra: Mapping[str, bytes],
        data: Mapping[str, str],
    ) -> None:
        """Keep a state.

        Raises:
            UnsupportedValue: it contains a value that no checkpoint can hold.
        """
        copied = snapshot(state, HostBuffers())
        wrong = nonfinite(copied.tree, copied.tensors)
        self.failure = NonFiniteLoss(f"Not finite at step {step}: {', '.join(wrong)}") if wrong else None
        if wrong:
            return
        encoded = encode(copied)
        files = {file.name: b"".join(bytes(piece) for piece in file.content) for file in encoded.files}
        self.checkpoints.append(Kept(step, epoch, kind, dict(metrics), {**files, **extra}))

    def peek(self) -> dict[str, Any] | None:
        """Return the state of the newest checkpoint, or ``None``."""
        return self.checkpoints[-1].parts() if self.checkpoints else None


class StopAt:
    """A stop request after a number of steps; ``None`` means never.

    Attributes:
        progress: of the trainer to stop.
    """

    def __init__(self, step: int | None = None) -> None:
        self.step = step
        self.progress = Progress()
        self.checkpoint_wanted = False

    @property
    def requested(self) -> bool:
        """Whether the trainer has reached the step."""
        return self.step is not None and self.progress.step >= self.step
