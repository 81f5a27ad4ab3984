"""Requests to stop: signals, and the death of the ``mlflow run`` that started us.

The first request lets the step under way finish; the training then commits an interrupted checkpoint and ends. SIGINT
followed by SIGTERM within a second is one request, because that is what ``mlflow run`` sends at one Ctrl+C. A second
SIGINT, a second later or more, does not wait for the upload; a third leaves at once.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Literal, Self

from mltrain.process import is_running

_SAME_REQUEST_SECONDS = 1.0
_LOOK_SECONDS = 0.5
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGBREAK")


class StopRequest:
    """Installs handlers for the length of a ``with`` block and remembers what was asked for.

    Outside the main thread, as in some notebooks, no handlers are installed. A signal that was ignored when the process
    began (``nohup``) stays ignored.

    Until :meth:`finish_steps` is called there is nothing to save, and a request raises :class:`KeyboardInterrupt`.

    Args:
        on_usr1: ``stop`` like the others, or ``checkpoint``: save and go on.
        launcher_pid: the process whose death is a request to stop.

    Attributes:
        reason: why to stop, once somebody asked: the name of the signal.
        checkpoint_wanted: set by SIGUSR1 where that means to save and go on.
        hurry: set by the second SIGINT: do not wait for the upload.
    """

    def __init__(self, *, on_usr1: Literal["stop", "checkpoint"] = "stop", launcher_pid: int | None = None) -> None:
        self.reason: str | None = None
        self.checkpoint_wanted = False
        self.hurry = threading.Event()
        self.on_usr1 = on_usr1
        self._in_steps = False
        self._launcher_pid = launcher_pid
        self._interrupts = 0
        self._last = -_SAME_REQUEST_SECONDS
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
        self._ended = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether somebody asked to stop."""
        return self.reason is not None

    @property
    def exit_code(self) -> int:
        """What a process returns that was stopped before its first step: 128 + the number of the signal."""
        return 128 + (signal.SIGINT if self.reason == "SIGINT" else signal.SIGTERM)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in STOPPING:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._received)
        if self._launcher_pid is not None:
            threading.Thread(target=self._watch, name="mltrain-launcher", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def finish_steps(self) -> None:
        """From now on a request lets the step under way finish; before, it raises :class:`KeyboardInterrupt`."""
        self._in_steps = True

    def expect_no_steps(self) -> None:
        """From now on there is nothing to save again: the next training of several is being built.

        Raises:
            KeyboardInterrupt: a stop was requested meanwhile.
        """
        self._in_steps = False
        if self.requested:
            raise KeyboardInterrupt

    def request(self, reason: str) -> None:
        """Ask to stop, from code."""
        if self.reason is None:
            self.reason = reason

    def _received(self, number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if name == "SIGUSR1" and self.on_usr1 == "checkpoint":
            self.checkpoint_wanted = True
            return
        first, same = self.reason is None, now - self._last < _SAME_REQUEST_SECONDS
        self.request(name)
        if name == "SIGINT" and (first or not same):
            self._interrupts += 1
        if first or not same:
            self._last = now
        if self._interrupts == 2:
            self.hurry.set()
        elif self._interrupts >= 3:
            os._exit(130)
        if first and not self._in_steps:
            raise KeyboardInterrupt
        if first:
            # os.write and not print: a handler may interrupt a print that holds the stream's lock
            _say(f"\n{name}: finishing this step and saving; again (a second later) to not wait for the upload.\n")
        elif self.hurry.is_set() and not same:
            _say("\nNot waiting for the upload; once more to leave at once.\n")

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            if self._launcher_pid is not None and not is_running(self._launcher_pid):
                self.request("the launcher's death")
                return


def _say(text: str) -> None:
    try:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2, text.encode())
    except (OSError, ValueError):
        return
