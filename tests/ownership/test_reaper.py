"""``reap`` and a resume may meet at any moment, and the run says afterwards what is true."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mltrain.ownership import liveness
from mltrain.ownership.attempts import STATUS_OF, conclude, ending_tags
from mltrain.ownership.reaper import reap
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import ATTEMPT_PREFIX, HEARTBEAT_TAG, HOLDER_TAG, STATUS_TAG

RUN = "a" * 32
DEAD = {**liveness.own(), "ticks": 1}
ELSEWHERE = {**liveness.own(), "boot": "another"}


class Page(list[Any]):
    token = None


class Client:
    """A tracking server that holds one run, and lets another party act before the call with a certain number."""

    def __init__(self, holder: dict[str, Any], *, status: str = "RUNNING", said: str = "running") -> None:
        self.status, self.stage = status, "active"
        self.params: dict[str, str] = {}
        self.tags = {HOLDER_TAG: json.dumps({"attempt": 1, **holder}), STATUS_TAG: said, HEARTBEAT_TAG: "1.0"}
        self.calls = 0
        self.between: dict[int, Callable[[], None]] = {}

    def _call(self) -> None:
        self.calls += 1
        self.between.pop(self.calls, lambda: None)()

    def search_experiments(self, **_: Any) -> Any:
        self._call()
        return Page([SimpleNamespace(experiment_id="0")])

    def search_runs(self, *_: Any, filter_string: str, **__: Any) -> Any:
        self._call()
        tag_is_running = self.tags[STATUS_TAG] == "running"
        wanted = tag_is_running if f"tags.`{STATUS_TAG}` = 'running'" in filter_string else not tag_is_running
        if "attributes.status = 'RUNNING'" in filter_string and self.status != "RUNNING":
            wanted = False
        return Page([self._run()] if wanted else [])

    def get_run(self, run_id: str) -> Any:
        self._call()
        return self._run()

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self._call()
        self.tags[key] = value

    def update_run(self, run_id: str, status: str) -> None:
        self._call()
        self.status = status

    set_terminated = update_run

    def _run(self) -> Any:
        info = SimpleNamespace(run_id=RUN, run_name="run", lifecycle_stage=self.stage, status=self.status)
        return SimpleNamespace(info=info, data=SimpleNamespace(params=dict(self.params), tags=dict(self.tags)))

    def claim(self) -> None:
        self.params[f"{ATTEMPT_PREFIX}2"] = json.dumps({"attempt": 2, **liveness.own()})

    def begin(self) -> None:
        self.status = "RUNNING"
        self.tags |= {
            HOLDER_TAG: json.dumps({"attempt": 2, **liveness.own()}),
            STATUS_TAG: "running",
            HEARTBEAT_TAG: "2.0",
        }

    def resume(self) -> None:
        self.claim()
        self.begin()

    def resume_and_finish(self) -> None:
        self.resume()
        self.tags |= ending_tags(2, "finished")
        self.status = "FINISHED"


def server(client: Client) -> TrackingClient:
    return TrackingClient("http://127.0.0.1:1", client)


def reaped(client: Client, meanwhile: Callable[[], None] = lambda: None) -> list[str]:
    return [one.found for one in reap(server(client), sleep=lambda seconds: meanwhile())]


def state(client: Client) -> tuple[str, str]:
    return client.status, client.tags[STATUS_TAG]


RUNS = {
    "said to be running": lambda: Client(DEAD),
    "ended without its status": lambda: Client(DEAD, said="finished"),
    "watched": lambda: Client(ELSEWHERE),
    "watched, ended without its status": lambda: Client(ELSEWHERE, said="finished"),
}


@pytest.mark.parametrize("kind", RUNS)
def test_undisturbed_it_closes_what_is_dead(kind: str) -> None:
    client = RUNS[kind]()
    assert reaped(client) == ["closed"]
    assert state(client) == (("FINISHED", "finished") if "ended" in kind else ("KILLED", "stopped"))


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("call", range(1, 13))
def test_a_resume_before_any_of_its_calls_stays_running(call: int, kind: str) -> None:
    client = RUNS[kind]()
    client.between[call] = client.resume
    reaped(client)
    if f"{ATTEMPT_PREFIX}2" in client.params:
        assert state(client) == ("RUNNING", "running")


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("call", range(1, 13))
def test_a_resume_that_also_finishes_before_any_of_its_calls_stays_finished(call: int, kind: str) -> None:
    client = RUNS[kind]()
    client.between[call] = client.resume_and_finish
    reaped(client)
    if f"{ATTEMPT_PREFIX}2" in client.params:
        assert state(client) == ("FINISHED", "finished")


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("claimed", range(1, 10))
@pytest.mark.parametrize("apart", range(1, 4))
def test_a_resume_whose_claim_and_tags_fall_between_different_calls_stays_running(
    kind: str, claimed: int, apart: int
) -> None:
    client = RUNS[kind]()
    client.between |= {claimed: client.claim, claimed + apart: client.begin}
    reaped(client)
    client.between.pop(claimed, None)
    for then in client.between.values():  # what the resume does after the reaper has gone
        then()
    if f"{ATTEMPT_PREFIX}2" in client.params:
        assert state(client) == ("RUNNING", "running")


def test_a_whole_reap_between_a_claim_and_its_tags_leaves_the_run_to_who_claimed_it() -> None:
    client = Client(DEAD, status="KILLED", said="stopped")
    client.claim()
    client.status = "RUNNING"
    assert reaped(client) == ["alive"]
    client.begin()
    assert state(client) == ("RUNNING", "running")


def test_a_run_that_is_resumed_while_it_is_watched_is_left_alone() -> None:
    client = Client(ELSEWHERE)
    assert reaped(client, client.resume) == ["alive elsewhere"]
    assert state(client) == ("RUNNING", "running")
    client = Client(ELSEWHERE)
    assert reaped(client, client.claim) == ["resumed"]
    assert state(client) == ("RUNNING", "running")


def test_a_holder_that_ends_while_it_is_watched_has_said_so_itself() -> None:
    client = Client(ELSEWHERE)

    def end() -> None:
        client.tags |= ending_tags(1, "finished")
        client.status = "FINISHED"

    assert reaped(client, end) == []
    assert state(client) == ("FINISHED", "finished")


def test_a_run_that_is_deleted_while_it_is_watched_hides_no_other() -> None:
    client = Client(ELSEWHERE)
    assert reaped(client, lambda: setattr(client, "stage", "deleted")) == []


@pytest.mark.parametrize("said", [*STATUS_OF, "running"])
def test_what_an_attempt_itself_has_said_comes_first(said: str) -> None:
    client = Client(DEAD)
    client.tags |= ending_tags(1, "failed")
    assert conclude(server(client), RUN, 1, said)
    assert state(client) == ("FAILED", "failed")


def test_an_earlier_attempt_is_not_concluded_over_a_later_one() -> None:
    client = Client(DEAD)
    client.resume()
    assert not conclude(server(client), RUN, 1, "stopped")
    assert state(client) == ("RUNNING", "running")
