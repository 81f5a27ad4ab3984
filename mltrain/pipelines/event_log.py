"""Writes and follows the log of a stage."""

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mltrain.commands.result import Display, Outcome
from mltrain.errors import MltrainError, NoCheckpoint
from mltrain.ownership.run_folder import known_home
from mltrain.run.listing import LIVE, state
from mltrain.store.opening import open_artifacts
from mltrain.tracking.client import TrackingClient

if TYPE_CHECKING:
    from mltrain.run.tracked import TrackedRun
    from mltrain.trainer.loop import Trainer

log = logging.getLogger(__name__)

LOG_FILE = "stage.log"
_MOST_BYTES = 2**26
_LOOK_SECONDS = 0.5


class LoggedStage(logging.Handler, Display):
    """A display that also writes to the stage's log file.

    A context manager, which also logs warnings and errors.

    The file is ``stage.log`` in the run's folder on this machine, uploaded to the artifacts after every epoch. If a line cannot
    be written, a warning is logged once and the stage continues.
    """

    def __init__(self, stage: str, inner: Display) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        self._stage = stage
        self._inner = inner
        self._run: TrackedRun | None = None
        self._file: Path | None = None
        self._epoch = -1
        self._refused = False
        self._torn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._write(f"{type(error).__name__}: {error}")
        logging.getLogger("mltrain").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a warning or an error."""
        self._write(self.format(record))

    def resuming(self, run_id: str) -> None:
        """Write nothing yet: the file belongs to the lease holder."""
        self._inner.resuming(run_id)

    def opened(self, run: "TrackedRun", where: str) -> None:
        """Open the file; write the run and its attempt."""
        self._run, self._file = run, run.home / LOG_FILE
        if not self._file.exists():  # the run began on another machine
            with suppress(OSError, MltrainError):
                self._file.write_bytes(bytes(run.artifacts.read(LOG_FILE, _MOST_BYTES)))
        logging.getLogger("mltrain").addHandler(self)
        self._write(f"stage {self._stage}, run {run.id}, attempt {run.ordinal} on {run.attempt.host}")
        self._inner.opened(run, where)

    def began(self, trainer: "Trainer", origin: str) -> None:
        """Write where training begins."""
        self._epoch = trainer.progress.epoch
        self._write(f"training from {origin}: {self._epoch} of {trainer.config.epochs} epochs are done")
        self._inner.began(trainer, origin)

    def stepped(self, trainer: "Trainer") -> None:
        """Write a row at the end of an epoch."""
        if trainer.progress.epoch != self._epoch and trainer.history.rows:
            self._epoch = trainer.progress.epoch
            row = trainer.history.rows[-1]
            figures = " ".join(f"{name}={value:.5g}" for name, value in row.items() if "/" in name)
            self._write(f"epoch {self._epoch} of {trainer.config.epochs} {figures}")
            self._send()
        self._inner.stepped(trainer)

    def waiting(self, what: str) -> None:
        """Write what is in progress after the training."""
        self._write(what)
        self._send()
        self._inner.waiting(what)

    def ended(self, outcome: Outcome) -> None:
        """Write how the training ended."""
        self._write(f"ended: {outcome.why}")
        self._inner.ended(outcome)

    def _write(self, line: str) -> None:
        if self._file is None:
            return
        try:
            with self._file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                begin = "\n" if self._torn else ""  # the last line may be incomplete
                file.write(f"{begin}{datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")
            self._torn = False
        except OSError as error:
            self._torn = True
            if not self._refused:
                self._refused = True  # first, because the warning is logged through this method, too
                log.warning("%s cannot be written: %s. The stage continues without it.", self._file, error.strerror)

    def _send(self) -> None:
        if self._run is not None and self._file is not None and self._file.is_file():
            self._run.log_file(self._file)


def followed(server: TrackingClient, run_id: str) -> Iterator[str]:
    """Yield a stage's log until the run ends.

    Raises:
        NoCheckpoint: the run has ended without a log.
    """
    shown = 0
    while True:
        run = server.run(run_id)
        live = state(server, run) in LIVE
        text = _text(server, run_id, str(run.info.artifact_uri))
        if text is None and not live:
            raise NoCheckpoint(f"Run {run_id} has no {LOG_FILE} on this machine or in its artifacts.")
        complete, newline, _ = (text or "").rpartition("\n")
        lines = complete.split("\n") if newline else []
        yield from lines[shown:]
        shown = max(shown, len(lines))
        if not live:
            return
        time.sleep(_LOOK_SECONDS)


def _text(server: TrackingClient, run_id: str, artifact_uri: str) -> str | None:
    try:
        return (known_home(server, run_id) / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        pass
    try:
        return open_artifacts(artifact_uri, server.uri).read(LOG_FILE, _MOST_BYTES).decode("utf-8", "replace")
    except (OSError, MltrainError):
        return None
