"""Types the commands of the guides in this process. Ctrl+C may interrupt a training."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mltrain.cli import app
from mltrain.cli import display as displays
from mltrain.errors import MltrainError
from tests.support.database import use_database


class Shell:
    """A directory with a tracking store and the typed commands.

    Args:
        folder: becomes the working directory.
        patch: undoes it all.
        captured: what is printed.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]) -> None:
        self.folder, self._patch, self._captured = folder, patch, captured
        use_database(patch, folder)
        patch.chdir(folder)

    def type(self, line: str, *, code: int = 0, interrupt_at: int | None = None) -> str:
        """Type ``mltrain`` and a line; return what it prints.

        Args:
            line: the words, separated by blanks.
            code: that it has to exit with.
            interrupt_at: the optimizer step after which Ctrl+C is pressed.
        """
        with self._patch.context() as patch:
            if interrupt_at is not None:
                patch.setattr(displays, "Terminal", _interrupting(interrupt_at))
            with pytest.raises((SystemExit, MltrainError)) as ended:
                app(line.split())
        printed = self._captured.readouterr()
        error = ended.value
        got = error.code if isinstance(error, SystemExit) else error.exit_code  # type: ignore[union-attr]
        assert (got or 0) == code, (line, got, printed, error)
        return printed.out + (str(error) if isinstance(error, MltrainError) else "")

    def run_id(self, printed: str) -> str:
        return next(line.removeprefix("run_id=") for line in printed.splitlines() if line.startswith("run_id="))


def _interrupting(step: int) -> Any:
    class Interrupting(displays.Terminal):
        def stepped(self, trainer: Any) -> None:
            super().stepped(trainer)
            if trainer.progress.step == step:
                os.kill(os.getpid(), signal.SIGINT)

    return Interrupting
