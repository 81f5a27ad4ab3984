"""Stop requests: signals, and the end of the ``mlflow run`` that started this process.

The first request lets the current step finish; the training then commits an interrupted checkpoint and ends. SIGINT
followed by SIGTERM within a second is one request, because ``mlflow run`` sends both at one Ctrl+C. A second
SIGINT, at least a second later, skips the upload; a third exits at once.

A signal to the process group, or to every process of a job, also reaches the children. They ignore it, because this process
still needs them to finish its step, and ends them itself.
"""

import atexit
import mmap
import multiprocessing
import multiprocessing.process
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Literal, Self
from weakref import WeakSet

from mltrain.ownership.liveness import is_running

_HEARD_SECONDS = 0.2
"""How long a child waits for the sign that its parent has received the same signal."""
_PROCESS: Any = multiprocessing.process.BaseProcess
_START = _PROCESS.start
_TRACKER: Any = multiprocessing.resource_tracker
_TRACKED = _TRACKER._IGNORED_SIGNALS
"""Signals that ``multiprocessing`` blocks while it starts its resource tracker, which inherits the mask."""
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGBREAK")


class Terminated(KeyboardInterrupt):
    """A stop before the first step, not by SIGINT."""

    exit_code = 128 + signal.SIGTERM


class StopRequest:
    """Handles and records stop signals during a ``with`` block.

    Outside the main thread, as in some notebooks, it installs no handlers. A signal that was ignored when the process
    began (``nohup``) stays ignored.

    Before :meth:`finish_steps` there is nothing to save, and a request raises :class:`KeyboardInterrupt`.

    Args:
        on_usr1: with ``stop``, SIGUSR1 stops like the others; with ``checkpoint`` the trainer saves and continues.
        launcher_pid: a process whose end is a stop request.
        same_request_seconds: signals within this time are one request.
        poll_seconds: time between two checks of the launcher.

    Attributes:
        reason: the name of the signal that requested the stop, or another reason; ``None`` before a request.
        checkpoint_wanted: set by SIGUSR1 if ``on_usr1`` is ``checkpoint``.
        hurry: set by the second SIGINT; then the process does not wait for the upload.
    """

    def __init__(
        self,
        *,
        on_usr1: Literal["stop", "checkpoint"] = "stop",
        launcher_pid: int | None = None,
        same_request_seconds: float = 1.0,
        poll_seconds: float = 0.5,
    ) -> None:
        self.reason: str | None = None
        self.checkpoint_wanted = False
        self.hurry = threading.Event()
        self.on_usr1 = on_usr1
        self._in_steps, self._launcher_pid = False, launcher_pid
        self._same_request_seconds, self._poll_seconds = same_request_seconds, poll_seconds
        self._interrupts = 0
        self._last = -same_request_seconds
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
        self._ended = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether a stop was requested."""
        return self.reason is not None

    @property
    def exit_code(self) -> int:
        """Exit code before the first step: 128 + signal number."""
        return 128 + signal.SIGINT if self.reason == "SIGINT" else Terminated.exit_code

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in STOPPING:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._received)
            _children.protect(list(self._before))
        if self._launcher_pid is not None:
            threading.Thread(target=self._watch, name="mltrain-launcher", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._before:
            _children.release()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def finish_steps(self) -> None:
        """Let the current step finish at later requests."""
        self._in_steps = True

    def expect_no_steps(self) -> None:
        """Raise :class:`KeyboardInterrupt` at a request, and at once after one."""
        self._in_steps = False
        if self.requested:
            raise self._interruption()

    def request(self, reason: str) -> None:
        """Request a stop from code."""
        if self.reason is None:
            self.reason = reason

    def _received(self, number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if name == "SIGUSR1" and self.on_usr1 == "checkpoint":
            self.checkpoint_wanted = True
            return
        first, same = self.reason is None, now - self._last < self._same_request_seconds
        if number == signal.SIGTERM and (self._in_steps or not first):
            _children.heard()
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
            raise self._interruption()
        if first:
            # os.write and not print: a handler may interrupt a print that holds the stream's lock
            _write_line(f"{name}: finishing this step and saving; again (a second later) to not wait for the upload.")
        elif self.hurry.is_set() and not same:
            _write_line("Not waiting for the upload; once more to leave at once.")

    def _interruption(self) -> KeyboardInterrupt:
        return (KeyboardInterrupt if self.reason == "SIGINT" else Terminated)(self.reason)

    def _watch(self) -> None:
        while not self._ended.wait(self._poll_seconds):
            if self._launcher_pid is not None and not is_running(self._launcher_pid):
                self.request("the launcher's death")
                return


class _Children:
    """Makes child processes leave stop signals to this process.

    Workers of a ``DataLoader``, and of loaders with the same design, ignore all of them; they end when their queue tells them to.
    Other forked children, such as those of a ``multiprocessing.Pool``, ignore all but SIGTERM, which ends a pool;
    they ignore SIGTERM too if this process has also received it, and continues.
    """

    def __init__(self) -> None:
        self._numbers: Sequence[signal.Signals] = ()
        self._terms: Any = bytearray(1)
        self._excused = 0
        self._workers: WeakSet[multiprocessing.process.BaseProcess] = WeakSet()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)
        atexit.register(self._end_workers)

    def protect(self, numbers: Sequence[signal.Signals]) -> None:
        """Make new children leave these signals to this process."""
        self._numbers = numbers
        self._terms = mmap.mmap(-1, 1)  # shared with forked children: the number of SIGTERMs received here, modulo 256

        def start(process: multiprocessing.process.BaseProcess) -> None:
            self._started(process)

        _PROCESS.start = start  # of every start method, and of torch's processes
        _TRACKER._IGNORED_SIGNALS = tuple({*_TRACKED, *numbers})

    def release(self) -> None:
        """Let new children handle signals as usual."""
        self._numbers = ()
        _PROCESS.start = _START
        _TRACKER._IGNORED_SIGNALS = _TRACKED

    def heard(self) -> None:
        """Tell the children that this process received SIGTERM, and continues."""
        self._terms[0] = (self._terms[0] + 1) % 256

    def _started(self, process: Any) -> None:
        is_loader = getattr(process._target, "__name__", "") == "_worker_loop"
        method = process._start_method or multiprocessing.get_start_method()
        if is_loader or method == "forkserver":
            process._target = _Child(process._target, self._numbers, is_loader)
        if not is_loader:
            _START(process)
            return
        self._workers.add(process)
        # The child inherits the blocked signals until it has installed its handlers; a fork server inherits them for good.
        with _blocked(self._numbers):
            _START(process)

    def _forked(self) -> None:
        self._workers.clear()
        for number in self._numbers:
            signal.signal(number, self._terminated if number == signal.SIGTERM else _ignored)
        self._excused = self._terms[0]

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        deadline = time.monotonic() + _HEARD_SECONDS
        while time.monotonic() < deadline:
            if self._terms[0] != self._excused:
                self._excused = (self._excused + 1) % 256
                return
            time.sleep(0.005)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _end_workers(self) -> None:
        """Kill workers: they ignore ``multiprocessing``'s SIGTERM, and it would wait for them."""
        if self._workers and hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for a worker that was killed
        for process in list(self._workers):
            with suppress(ValueError, AttributeError):  # closed, or never started
                process.kill()


@dataclass(frozen=True)
class _Child:
    """Main function of a child that starts with blocked signals."""

    target: Callable[..., Any] | None
    numbers: Sequence[signal.Signals]
    is_loader: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_loader:
            from torch.utils.data import _utils

            handling: Any = _utils.signal_handling
            set_handlers = handling._set_worker_signal_handlers

            def set_and_ignore() -> None:
                set_handlers()  # its handler of SIGTERM, which is in C, ends the worker
                self._ignore()

            handling._set_worker_signal_handlers = set_and_ignore
            self._ignore()
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.numbers)
        return self.target(*args, **kwargs) if self.target is not None else None

    def _ignore(self) -> None:
        for number in self.numbers:
            signal.signal(number, _ignored)


def _ignored(number: int, frame: FrameType | None) -> None:
    """Do nothing; unlike with SIG_IGN, the signal still ends programs of the child."""


@contextmanager
def _blocked(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_children = _Children()


def _write_line(text: str) -> None:
    """Write a line to stderr.

    On a terminal it replaces the cursor's line, which shows a progress bar and ``^C``.
    """
    try:
        stderr = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
        begin = "\r\033[2K" if os.isatty(stderr) else "\n"
        os.write(stderr, f"{begin}{text}\n".encode())
    except (OSError, ValueError):
        return
