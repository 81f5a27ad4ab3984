"""Sends metric points from a process of its own, where they come fast.

To build a thousand points and send them holds Python's interpreter lock for tens of milliseconds, in which no thread of the
training gets on. So once a thousand points wait, a second process reads them from the journal, sends them, and removes
them there. It neither retries nor judges refusals: the sender orders one batch after the other, and where one does not go
through, the sender sends that batch itself. It ends with the process that started it, even in the middle of a request:
what it sent later would come beside what a resume computes again.
"""

import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

from mltrain.delivery.journal import Journal, StoredPoint
from mltrain.tracking.client import TrackingClient, connect

log = logging.getLogger(__name__)

POINTS_A_BATCH = 1000
"""What MLflow's REST interface takes at most in one call."""
LOOK_SECONDS = 0.1
_SIGN_SECONDS = 1.0
"""How often the process reports that it runs."""

Sent = Literal["sent", "later", "otherwise"]
"""Of a batch: it is there; it is to be asked for again when the process has started; it is to be sent without it."""


def send_points(server: TrackingClient, run_id: str, points: Sequence[StoredPoint]) -> None:
    """Send metric points with their own timestamps.

    Raises:
        RunNotFound, TrackingError: as :class:`TrackingClient`.
    """
    server.once.log_points(run_id, [(point.key, point.value, point.timestamp, point.step) for point in points])


class SenderProcess:
    """Starts the process when it is worth it, and tells it what to do. For one thread.

    Args:
        journal: the file.
        uri: of the tracking server.
        starting_seconds: for which points wait for the process, which has MLflow to import; then they are sent without it.
        patience_seconds: for which a full batch waits before the process is started: a training that ends before that is not
            slowed down by its start. At the end the training's own process sends what waits.
        silent_seconds: after which a process that reports nothing counts as stopped and is ended.
    """

    def __init__(
        self,
        journal: Path,
        uri: str,
        *,
        starting_seconds: float = 30.0,
        patience_seconds: float = 2.0,
        silent_seconds: float = 10.0,
    ) -> None:
        self._patience_seconds = patience_seconds
        self._wanted = math.inf
        self._starting_seconds = starting_seconds
        self._silent_seconds = silent_seconds
        self._setting = {"journal": str(journal), "uri": uri, "parent": os.getpid()}
        self._started = -math.inf
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._ready = False
        self._closed = False
        self._lock = threading.Lock()

    def deliver(self, run_id: str, waiting: int) -> Sent:
        """Have a batch sent.

        Args:
            run_id: of the run.
            waiting: how many points wait, counted up to a batch.
        """
        if self._process is None and waiting >= POINTS_A_BATCH:
            self._wanted = min(self._wanted, time.monotonic())
            if self.starting:
                return "later"
            self._start()
        if self._process is None or self._closed:
            return "otherwise"
        if self._process.poll() is not None:
            return self._given_up(f"it has ended with {self._process.returncode}")
        if not self._is_ready():
            return "later" if self.starting else "otherwise"
        if not self._tell({"run": run_id}):
            return self._given_up("it takes no orders")
        answer = self._answer(self._process)
        if answer is None:
            return self._given_up("it is stopped")
        if "error" in answer:
            log.debug("The process that sends points: %s", answer["error"])
        # What waits in memory, because the disk refuses it, the process cannot see.
        return "sent" if answer.get("sent") else "otherwise"

    @property
    def starting(self) -> bool:
        """Whether points wait for the process, which is not started or not ready yet."""
        process = self._process
        if process is None:
            return 0 <= time.monotonic() - self._wanted < self._patience_seconds and not self._closed
        waiting = process.poll() is None and not self._ready and not self._closed
        return waiting and time.monotonic() - self._started < self._starting_seconds

    def close(self) -> None:
        """End the process, at once; called from any thread."""
        with self._lock:
            self._closed = True
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_SIGN_SECONDS)
            with suppress(OSError):  # what was not read by then
                self._process.stdin.close()  # type: ignore[union-attr]

    def _given_up(self, why: str) -> Sent:
        """End a process that does not do its work; the training's own does it from now on."""
        if not self._closed:
            log.warning("The process that sends points is given up, and the training's sends them: %s.", why)
            self.close()
        return "otherwise"

    def _start(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._started = time.monotonic()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", __name__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    process_group=0,  # a Ctrl+C at the terminal is for the training
                )
            except OSError as error:
                self._closed = True
                log.warning("No process that sends points can be started, so the training's does it: %s", error)
                return
        threading.Thread(target=self._listen, args=(self._process,), name="mltrain-answers", daemon=True).start()
        self._tell(self._setting)

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as answers:
            for line in answers:
                with suppress(ValueError):  # whatever else was printed before answers had the pipe to themselves
                    self._answers.put(json.loads(line))

    def _is_ready(self) -> bool:
        if not self._ready:
            with suppress(queue.Empty):
                self._ready = "ready" in self._answers.get_nowait()
        return self._ready

    def _answer(self, process: "subprocess.Popen[str]") -> dict[str, Any] | None:
        """Return the answer to an order, or ``None`` where the process has fallen silent."""
        heard = time.monotonic()
        while time.monotonic() - heard < self._silent_seconds:
            with suppress(queue.Empty):
                answer = self._answers.get(timeout=0.5)
                heard = time.monotonic()
                if "runs" not in answer:
                    return answer
            if process.poll() is not None:
                return {"error": f"it has ended with {process.returncode}"}
        return None

    def _tell(self, said: dict[str, Any]) -> bool:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(said) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # it has ended, or was closed
            return False
        return True


def main() -> None:
    """Be the process: a setting, then batches to send, come as lines of JSON; so do the answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(10)  # the training comes first
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    asked = _lines(sys.stdin)
    setting = next(asked)
    threading.Thread(target=_end_with, args=(setting["parent"],), name="mltrain-parent", daemon=True).start()
    server = connect(setting["uri"])
    journal = Journal(Path(setting["journal"]), 0, mend=False)
    server.client.made()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    working, turn = threading.Event(), threading.Lock()

    def say(answer: dict[str, Any]) -> None:
        with turn:
            print(json.dumps(answer), file=answers, flush=True)

    def say_that_it_runs() -> None:
        while working.wait():
            say({"runs": True})
            time.sleep(_SIGN_SECONDS)

    threading.Thread(target=say_that_it_runs, name="mltrain-sign", daemon=True).start()
    for batch in asked:
        answer: dict[str, Any]
        working.set()
        try:
            points = journal.unsent_points(POINTS_A_BATCH)
            send_points(server, batch["run"], points)
            journal.mark_sent(points)
            answer = {"sent": len(points)}
        except Exception as error:  # noqa: BLE001 - whatever it is, who asked does it otherwise
            answer = {"error": f"{type(error).__name__}: {error}"}
        working.clear()
        say(answer)


def _end_with(parent: int) -> None:
    """End when the parent does. Its end of the pipe tells that late: data workers that it forked hold it open, too."""
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(0)


def _lines(stream: IO[str]) -> Iterator[dict[str, Any]]:
    """Yield what comes; at its end this process ends, whatever it is doing."""
    come: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            come.put(line)
        os._exit(0)

    threading.Thread(target=read, name="mltrain-orders", daemon=True).start()
    while True:
        yield json.loads(come.get())


if __name__ == "__main__":
    main()
