"""A thread that does one job at a time."""

import logging
import threading
from collections.abc import Iterator

import pytest

from mltrain.checkpoint.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("test")
    yield made
    made.close()


def test_jobs_are_done_one_after_the_other_in_a_thread_of_their_own(worker: Worker) -> None:
    done: list[tuple[int, str]] = []
    for number in range(5):
        worker.do(lambda number=number: done.append((number, threading.current_thread().name)))  # type: ignore[misc]
    assert worker.wait()
    assert [number for number, _ in done] == list(range(5))
    assert {name for _, name in done} == {"test_0"}
    assert worker.idle


def test_waiting_ends_when_the_time_is_over(worker: Worker) -> None:
    gate = threading.Event()
    worker.do(lambda: gate.wait(60) and None)
    assert not worker.wait(0.01)
    assert not worker.idle
    gate.set()
    assert worker.wait(60)


def test_an_error_is_logged_and_the_next_job_is_done(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    worker.do(lambda: done.append(1 // 0))
    worker.do(lambda: done.append(1))
    assert worker.wait(60)
    assert done == [1]
    assert [(record.levelno, record.message) for record in caplog.records] == [(logging.ERROR, "Background job failed")]


def test_a_closed_worker_drops_what_is_queued_and_what_comes(worker: Worker) -> None:
    started, gate, done = threading.Event(), threading.Event(), list[int]()

    def slow() -> None:
        started.set()
        gate.wait(60)
        done.append(1)

    worker.do(slow)
    worker.do(lambda: done.append(2))
    assert started.wait(60)
    assert not worker.refuses
    worker.close()
    worker.do(lambda: done.append(3))
    assert worker.refuses
    gate.set()
    assert worker.wait(60)
    assert done == [1]


def test_at_the_interpreters_end_a_job_waits_for_those_before_it(worker: Worker) -> None:
    started, gate, done = threading.Event(), threading.Event(), list[int]()

    def slow() -> None:
        started.set()
        gate.wait(60)
        done.append(1)

    worker.do(slow)
    worker.do(lambda: worker.do(lambda: done.append(2)))
    assert started.wait(60)
    worker._pool.shutdown(wait=False)  # as the interpreter does when it ends
    last = threading.Thread(target=lambda: worker.do(lambda: done.append(3)))
    last.start()
    last.join(0.2)
    assert done == [], "two jobs at once"
    gate.set()
    last.join(60)
    assert done == [1, 2, 3]
