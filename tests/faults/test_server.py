"""A real tracking server with proxied artifacts: another machine, an outage in the middle, what is left behind."""

import signal
from contextlib import suppress

import pytest

from tests.support.equality import identical
from tests.support.servers import TrackingServer
from tests.support.waiting import let_pass
from tests.support.workplace import Workplace

pytestmark = pytest.mark.faults


def test_a_run_continues_on_a_machine_that_never_saw_it(remote: Workplace, undisturbed: tuple[Workplace, str]) -> None:
    stopped = remote.mltrain("train", "tiny.py", "signal_at=8", "save_every_steps=3")
    assert stopped.code == 75, stopped.err
    other = remote.elsewhere("another-machine")
    resumed = other.mltrain("train", "--resume-run", stopped.run_id)
    assert resumed.code == 0, resumed.err
    reference, run_id = undisturbed
    expected, got = reference.weights(run_id), other.weights(stopped.run_id)
    assert {part for part in expected if not identical(expected[part], got[part])} == set()
    assert other.points(stopped.run_id) == reference.points(run_id)
    assert other.mltrain("verify", stopped.run_id).code == 0
    for _ in range(2):
        assert [result["uploaded"] for result in other.mltrain("sync", "--json").json] == [[]]


def test_an_outage_in_the_middle_loses_and_doubles_nothing(
    tracking: TrackingServer, remote: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    started = remote.start("train", "tiny.py", "sleep=0.3")
    started.until("epoch    1/4")
    tracking.kill()
    started.until("epoch    3/4")  # training does not wait for the server
    tracking.start()
    done = started.wait()
    assert done.code == 0, done.err
    assert "buffering on this disk" in done.err
    reference, run_id = undisturbed
    assert remote.points(done.run_id) == reference.points(run_id)
    assert remote.mltrain("verify", done.run_id).code == 0


def test_what_an_outage_at_the_end_leaves_behind_is_sent_later(
    tracking: TrackingServer, remote: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    started = remote.start("train", "tiny.py", "sleep=0.2", MLTRAIN_GRACE_SECONDS="2")
    started.until("epoch    2/4")
    tracking.kill()
    try:
        started.until("epoch    4/4")
        started.child.kill(signal.SIGINT)  # the end waits for the store; a second request does not
        let_pass(1.5)
        started.child.kill(signal.SIGINT)
        done = started.wait(90)
    finally:
        tracking.start()
    assert "mltrain sync" in done.out
    synced = remote.mltrain("sync")
    assert synced.code == 0, synced.out + synced.err
    assert remote.mltrain("sync").code == 0
    reference, run_id = undisturbed
    assert remote.points(done.run_id) == reference.points(run_id)
    assert remote.mltrain("runs", "--json").json[0]["state"] == "finished"


def test_a_second_interrupt_does_not_wait_for_a_store_that_hangs(
    tracking: TrackingServer, remote: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    started = remote.start("train", "tiny.py", "sleep=0.2")
    started.until("epoch    1/4")
    with tracking.hanging():
        started.child.kill(signal.SIGINT)
        let_pass(1.5)
        assert started.child.code is None  # it waits for the store
        started.child.kill(signal.SIGINT)
        done = started.wait(60)  # the server still hangs
    assert done.code == 76, done.out + done.err
    assert f"mltrain train --resume-run {done.run_id}" in done.out
    resumed = remote.mltrain("train", "--resume-run", done.run_id, "sleep=0")
    assert resumed.code == 0, resumed.err
    reference, run_id = undisturbed
    expected, got = reference.weights(run_id), remote.weights(done.run_id)
    assert {part for part in expected if not identical(expected[part], got[part])} == set()
    assert remote.points(done.run_id) == reference.points(run_id)


def test_a_third_interrupt_leaves_at_once(tracking: TrackingServer, remote: Workplace) -> None:
    started = remote.start("train", "tiny.py", "sleep=0.2", MLTRAIN_GRACE_SECONDS="60")
    started.until("epoch    1/4")
    with tracking.hanging():
        for _ in range(3):
            with suppress(ProcessLookupError):  # it may leave at the second
                started.child.kill(signal.SIGINT)
            started.child.ended.wait(1.2)  # later than a second is another request
        done = started.wait(30)
    assert done.code in (76, 130), done.out + done.err
    assert remote.mltrain("train", "--resume-run", done.run_id, "sleep=0").code == 0
