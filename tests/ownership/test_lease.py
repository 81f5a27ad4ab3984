"""A holder that lost its lease notices before it writes."""

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import mltrain.ownership.lease as lease_module
from mltrain.errors import TrackingError
from mltrain.ownership.lease import Lease
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.connection import Refusal
from mltrain.tracking.tags import ATTEMPT_PREFIX, HEARTBEAT_TAG, STATUS_TAG
from tests.support.waiting import eventually, let_pass

RUN = "a" * 32


class Client:
    """A tracking server that holds one run."""

    def __init__(self) -> None:
        self.attempts = 1
        self.status = "RUNNING"
        self.stage = "active"
        self.answers = True
        self.hanging: threading.Event | None = None
        """Until when questions hang, if any does."""
        self.asked = 0
        self.tags = {STATUS_TAG: "running"}
        self.beats: list[str] = []

    def get_run(self, run_id: str) -> Any:
        self.asked += 1
        if self.hanging is not None:
            self.hanging.wait(30)
        if not self.answers:
            raise ConnectionError("reset")
        params = {f"{ATTEMPT_PREFIX}{attempt}": "somebody" for attempt in range(1, self.attempts + 1)}
        info = SimpleNamespace(run_id=run_id, lifecycle_stage=self.stage, status=self.status)
        return SimpleNamespace(info=info, data=SimpleNamespace(params=params, tags=dict(self.tags)))

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        if not self.answers:
            raise ConnectionError("reset")
        if key == HEARTBEAT_TAG:
            self.beats.append(value)
        else:
            self.tags[key] = value

    def update_run(self, run_id: str, status: str) -> None:
        self.status = status


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def quiet(client: Client) -> Iterator[Lease]:
    """A lease that sends no heartbeat while a test lasts."""
    held = Lease(TrackingClient("http://127.0.0.1:1", client), 1, beat_seconds=3600.0, lease_seconds=7200.0)
    held.begin(RUN)
    yield held
    held.close()


@pytest.fixture
def lease(client: Client) -> Iterator[Lease]:
    held = Lease(TrackingClient("http://127.0.0.1:1", client), 1, beat_seconds=0.05)
    held.begin(RUN)
    yield held
    held.close()


def asleep(lease: Lease) -> None:
    """Pretend that the process was suspended, so the lease doubts."""
    lease._tick = time.monotonic() - lease_module._ASLEEP_SECONDS - 1


def test_heartbeats_come_though_nobody_calls_the_lease(lease: Lease, client: Client) -> None:
    eventually(lambda: {"1.1", "1.2", "1.3"} <= set(client.beats), client.beats)


def test_a_question_that_hangs_does_not_hold_up_the_next_heartbeat(lease: Lease, client: Client) -> None:
    eventually(lambda: bool(client.beats))
    client.hanging = stuck = threading.Event()
    asked = client.asked
    eventually(lambda: client.asked > asked)
    client.hanging, beats = None, len(client.beats)
    eventually(lambda: len(client.beats) > beats + 2)
    assert not stuck.is_set()
    stuck.set()


def test_only_a_few_heartbeats_hang_at_once(lease: Lease, client: Client) -> None:
    client.hanging = threading.Event()
    eventually(lambda: client.asked >= lease_module._MAX_PENDING)
    let_pass(0.3)
    assert client.asked <= lease_module._MAX_PENDING + 1  # one may have been answered just before
    client.hanging.set()


def test_who_keeps_asks_only_where_the_last_answer_is_old(quiet: Lease, client: Client) -> None:
    for _ in range(20):
        assert quiet.keep()
    assert client.asked == 0
    quiet._confirmed -= 3601
    assert quiet.keep()
    assert client.asked == 1


def test_a_later_claim_of_another_ends_the_hold_for_good(lease: Lease, client: Client) -> None:
    client.attempts = 2
    assert lease.overtaken.wait(20)
    assert not lease.keep()
    eventually(lambda: not any(thread.name == "mltrain-beat" for thread in threading.enumerate()))
    beats = list(client.beats)
    client.attempts = 1
    assert not lease.keep()
    assert not lease.holds()
    let_pass(0.2)
    assert client.beats == beats


def test_its_own_next_attempt_is_not_somebody_else(lease: Lease, client: Client) -> None:
    lease.follow(2)
    client.attempts = 2
    eventually(lambda: bool(client.beats) and client.beats[-1].startswith("2."))
    assert lease.keep()


def test_holding_asks_nobody_while_the_process_was_awake(quiet: Lease, client: Client) -> None:
    client.attempts = 2
    assert quiet.holds()
    assert quiet.holds(certainly=True)
    assert client.asked == 0


def test_who_was_asleep_asks_before_it_writes(quiet: Lease, client: Client) -> None:
    client.attempts = 2
    asleep(quiet)
    assert not quiet.holds()


def test_doubt_outlives_the_tick_after_the_sleep(quiet: Lease, client: Client) -> None:
    asleep(quiet)
    eventually(lambda: quiet._doubted > quiet._confirmed)
    client.attempts = 2
    assert not quiet.holds()


def test_an_answer_from_before_the_sleep_does_not_end_the_doubt(quiet: Lease, client: Client) -> None:
    client.hanging = threading.Event()
    quiet._confirmed -= 3601
    asking = threading.Thread(target=quiet.keep)
    asking.start()
    eventually(lambda: client.asked == 1)
    asleep(quiet)
    eventually(lambda: quiet._doubted > quiet._confirmed)
    client.hanging.set()
    asking.join()
    client.attempts = 2
    assert not quiet.holds()


def test_who_could_not_deliver_heartbeats_for_the_lease_asks_before_it_writes(client: Client) -> None:
    lease = Lease(TrackingClient("http://127.0.0.1:1", client), 1, beat_seconds=0.05, lease_seconds=0.1)
    lease.begin(RUN)
    client.answers = False
    eventually(lease._doubtful)
    assert not lease.holds(certainly=True)
    client.attempts, client.answers = 2, True
    eventually(lambda: not lease.holds())
    assert lease.overtaken.is_set()
    lease.close()


def test_who_was_asleep_and_cannot_ask_goes_on_but_does_not_act_for_certain(client: Client) -> None:
    lease = Lease(TrackingClient("http://127.0.0.1:1", client), 1, beat_seconds=0.05, lease_seconds=7200.0)
    lease.begin(RUN)
    client.answers = False
    asleep(lease)
    assert lease.holds()
    assert not lease.holds(certainly=True)
    client.answers = True
    eventually(lambda: lease.holds(certainly=True))
    lease.close()


def test_a_server_that_does_not_answer_is_not_asked_again_at_once(quiet: Lease, client: Client) -> None:
    client.answers = False
    asleep(quiet)
    for _ in range(10):
        assert quiet.holds()
    assert client.asked == 1


def test_a_server_that_does_not_answer_is_told_to_who_keeps(quiet: Lease, client: Client) -> None:
    client.answers = False
    asleep(quiet)
    with pytest.raises(TrackingError) as caught:
        quiet.keep()
    assert isinstance(caught.value, Refusal)
    assert not caught.value.permanent
    assert not quiet.overtaken.is_set()


def test_a_deleted_run_is_reported_and_gets_no_heartbeat_until_it_is_restored(client: Client) -> None:
    client.stage = "deleted"
    lease = Lease(TrackingClient("http://127.0.0.1:1", client), 1, beat_seconds=0.05)
    lease.begin(RUN)
    eventually(lambda: lease.gone is not None)
    assert lease.keep()
    assert lease.gone is not None
    assert "was deleted" in lease.gone
    assert client.beats == []
    client.stage = "active"
    eventually(lambda: bool(client.beats))
    assert lease.gone is None
    lease.close()


@pytest.mark.parametrize(("status", "said"), [("FINISHED", "running"), ("RUNNING", "stopped"), ("KILLED", "stopped")])
def test_a_state_that_somebody_else_set_is_put_right_while_it_runs(
    status: str, said: str, lease: Lease, client: Client
) -> None:
    client.status, client.tags[STATUS_TAG] = status, said
    eventually(lambda: (client.status, client.tags[STATUS_TAG]) == ("RUNNING", "running"))


def test_how_the_run_ends_is_not_somebody_elses_doing_and_heartbeats_go_on(lease: Lease, client: Client) -> None:
    lease.end(10)
    client.status, client.tags[STATUS_TAG] = "FINISHED", "finished"
    beats = len(client.beats)
    eventually(lambda: len(client.beats) > beats + 2)
    assert (client.status, client.tags[STATUS_TAG]) == ("FINISHED", "finished")


def test_a_status_that_is_being_put_right_is_waited_for(lease: Lease, client: Client) -> None:
    entered, go = threading.Event(), threading.Event()

    def slow(run_id: str, status: str) -> None:
        entered.set()
        go.wait(20)
        client.status = status

    client.update_run = slow  # type: ignore[method-assign]
    client.status = "FINISHED"
    assert entered.wait(20)
    ended: list[str] = []

    def end() -> None:
        lease.end(20)
        client.status = "KILLED"
        ended.append(client.status)

    ending = threading.Thread(target=end)
    ending.start()
    assert ended == []
    go.set()
    ending.join(20)
    let_pass(0.2)
    assert client.status == "KILLED"


def test_a_run_that_does_not_exist_yet_is_not_asked_for(client: Client) -> None:
    lease = Lease(TrackingClient("http://127.0.0.1:1", client), 1, beat_seconds=0.05)
    try:
        assert lease.keep()
        asleep(lease)
        assert lease.holds(certainly=True)
        assert client.asked == 0
    finally:
        lease.close()
