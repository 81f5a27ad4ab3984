"""Sends metric points from a second process.

Building and sending a thousand points holds Python's interpreter lock for tens of milliseconds, which stalls the training. So
once a thousand points are queued, a second process reads them from the journal, sends them, and removes them there. It neither
retries nor handles refusals: the sender requests one batch after the other, and sends a batch that fails itself. The process
ends with its parent, even in the middle of a request, because points sent later would duplicate those of a resume.
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
"""The most points that MLflow's REST interface accepts in one call."""
POLL_SECONDS = 0.1
_HEARTBEAT_SECONDS = 1.0

Delivery = Literal["sent", "wait", "fallback"]
"""The batch was sent; the process is still starting; or the sender must send the batch itself."""


def send_points(server: TrackingClient, run_id: str, points: Sequence[StoredPoint]) -> None:
    """Send metric points with their own timestamps.

    Raises:
        RunNotFound, TrackingError: as :class:`TrackingClient`.
    """
    server.once.log_points(run_id, [(point.key, point.value, point.timestamp, point.step) for point in points])


class SenderProcess:
    """Starts the sending process, and requests batches from it.

    The process is started once there are many points. For use by one thread.

    Args:
        journal: file of the journal.
        uri: of the tracking server.
        startup_seconds: timeout for the start of the process, which imports MLflow; after it the sender sends the points.
        delay_seconds: for which a full batch waits before the process is started, so that a short training is not slowed
            down by the start.
        silent_seconds: without a heartbeat, after which the process is killed.
    """

    def __init__(
        self,
        journal: Path,
        uri: str,
        *,
        startup_seconds: float = 30.0,
        delay_seconds: float = 2.0,
        silent_seconds: float = 10.0,
    ) -> None:
        self._delay_seconds = delay_seconds
        self._wanted = math.inf
        self._startup_seconds = startup_seconds
        self._silent_seconds = silent_seconds
        self._settings = {"journal": str(journal), "uri": uri, "parent": os.getpid()}
        self._started = -math.inf
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._ready = False
        self._closed = False
        self._lock = threading.Lock()

    def deliver(self, run_id: str, waiting: int) -> Delivery:
        """Request one batch from the process.

        Args:
            run_id: of the run.
            waiting: number of queued points, at most a batch.
        """
        if self._process is None and waiting >= POINTS_A_BATCH:
            self._wanted = min(self._wanted, time.monotonic())
            if self.starting:
                return "wait"
            self._start()
        if self._process is None or self._closed:
            return "fallback"
        if self._process.poll() is not None:
            return self._disable(f"it ended with exit code {self._process.returncode}")
        if not self._is_ready():
            return "wait" if self.starting else "fallback"
        if not self._request({"run": run_id}):
            return self._disable("it closed its input")
        answer = self._answer(self._process)
        if answer is None:
            return self._disable("it sent no heartbeat")
        if "error" in answer:
            log.debug("The sending process failed: %s", answer["error"])
        # It sends nothing while a failing disk keeps the points in this process's memory.
        return "sent" if answer.get("sent") else "fallback"

    @property
    def starting(self) -> bool:
        """Whether points wait for the start of the process."""
        process = self._process
        if process is None:
            return 0 <= time.monotonic() - self._wanted < self._delay_seconds and not self._closed
        waiting = process.poll() is None and not self._ready and not self._closed
        return waiting and time.monotonic() - self._started < self._startup_seconds

    def close(self) -> None:
        """Kill the process; may be called from any thread."""
        with self._lock:
            self._closed = True
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_HEARTBEAT_SECONDS)
            with suppress(OSError):  # some input was not read
                self._process.stdin.close()  # type: ignore[union-attr]

    def _disable(self, why: str) -> Delivery:
        """Kill a broken process; the sender sends all batches afterwards."""
        if not self._closed:
            log.warning("The sending process is disabled (%s); the training process sends the points.", why)
            self.close()
        return "fallback"

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
                    process_group=0,  # a Ctrl+C at the terminal must reach the training only
                )
            except OSError as error:
                self._closed = True
                log.warning("The sending process cannot be started (%s); the training process sends the points.", error)
                return
        threading.Thread(target=self._listen, args=(self._process,), name="mltrain-answers", daemon=True).start()
        self._request(self._settings)

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as answers:
            for line in answers:
                with suppress(ValueError):  # a library may have printed something before the first answer
                    self._answers.put(json.loads(line))

    def _is_ready(self) -> bool:
        if not self._ready:
            with suppress(queue.Empty):
                self._ready = "ready" in self._answers.get_nowait()
        return self._ready

    def _answer(self, process: "subprocess.Popen[str]") -> dict[str, Any] | None:
        """Return a request's answer. ``None`` if the heartbeats stop."""
        last = time.monotonic()
        while time.monotonic() - last < self._silent_seconds:
            with suppress(queue.Empty):
                answer = self._answers.get(timeout=0.5)
                last = time.monotonic()
                if "runs" not in answer:
                    return answer
            if process.poll() is not None:
                return {"error": f"it ended with exit code {process.returncode}"}
        return None

    def _request(self, request: dict[str, Any]) -> bool:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # the process has ended, or its input is closed
            return False
        return True


def main() -> None:
    """Run the sending process.

    Standard input has settings, then a request for each batch; standard output has the answers, all as lines of JSON.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(10)  # the training takes precedence
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    requests = _lines(sys.stdin)
    settings = next(requests)
    threading.Thread(target=_end_with, args=(settings["parent"],), name="mltrain-parent", daemon=True).start()
    server = connect(settings["uri"])
    journal = Journal(Path(settings["journal"]), 0, mend=False)
    server.client.preferred()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    working, printing = threading.Event(), threading.Lock()

    def reply(answer: dict[str, Any]) -> None:
        with printing:
            print(json.dumps(answer), file=answers, flush=True)

    def send_heartbeats() -> None:
        while working.wait():
            reply({"runs": True})
            time.sleep(_HEARTBEAT_SECONDS)

    threading.Thread(target=send_heartbeats, name="mltrain-heartbeat", daemon=True).start()
    for batch in requests:
        answer: dict[str, Any]
        working.set()
        try:
            points = journal.unsent_points(POINTS_A_BATCH)
            send_points(server, batch["run"], points)
            journal.mark_sent(points)
            answer = {"sent": len(points)}
        except Exception as error:  # noqa: BLE001 - the sender falls back to sending the batch itself
            answer = {"error": f"{type(error).__name__}: {error}"}
        working.clear()
        reply(answer)


def _end_with(parent: int) -> None:
    """End this process when its parent ends.

    The pipe closes too late, because data workers forked by the parent hold it open.
    """
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(0)


def _lines(stream: IO[str]) -> Iterator[dict[str, Any]]:
    """Yield lines as JSON; end this process with the stream."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, name="mltrain-requests", daemon=True).start()
    while True:
        yield json.loads(lines.get())


if __name__ == "__main__":
    main()
