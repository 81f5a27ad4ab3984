"""A background thread that runs jobs one at a time.

Jobs run in the order in which they are queued.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

from mltrain.errors import MltrainError

log = logging.getLogger(__name__)


class Worker:
    """A background thread with a queue of jobs.

    A job's error is logged, and the next job runs.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._jobs: list[Future[None]] = []
        self._run_lock = threading.Lock()
        self._running_thread: int | None = None
        self.closed = False
        """Whether :meth:`close` was called."""

    def do(self, job: Callable[[], None]) -> None:
        """Queue a job. A closed worker drops it."""
        with self._lock:
            try:
                self._jobs = [*(one for one in self._jobs if not one.done()), self._pool.submit(self._run, job)]
                return
            except RuntimeError:
                if self.closed:
                    return
        # The interpreter is exiting and accepts no more jobs, but waits for this thread, so the job runs here: after the
        # queued ones, because jobs rely on their order and on running alone.
        if self._running_thread == threading.get_ident():
            logged(job)
        else:
            self.wait()
            self._run(job)

    def _run(self, job: Callable[[], None]) -> None:
        with self._run_lock:
            self._running_thread = threading.get_ident()
            try:
                logged(job)
            finally:
                self._running_thread = None

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the queued jobs; return whether they finished.

        In a process that was forked from the worker's own they never do, and it does not wait.

        Args:
            seconds: maximum wait. If ``None``, it waits without limit.
        """
        if self.is_forked:
            return False  # a fork has no copy of the thread
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            try:
                job.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return False
            except CancelledError:
                pass
        return True

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of the worker's own."""
        return os.getpid() != self._process

    @property
    def idle(self) -> bool:
        """Whether no job is queued or under way."""
        with self._lock:
            return all(job.done() for job in self._jobs)

    @property
    def refuses(self) -> bool:
        """Whether it is closed, or the interpreter is exiting."""
        try:
            self._pool.submit(lambda: None)
        except RuntimeError:
            return True
        return False

    def close(self) -> None:
        """Drop queued jobs without waiting for the running one."""
        self.closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)


def logged(job: Callable[[], None]) -> None:
    """Run a job; log its error instead of raising it."""
    try:
        job()
    except MltrainError as error:
        log.warning("Background job failed: %s", error)
    except Exception:
        log.exception("Background job failed")
