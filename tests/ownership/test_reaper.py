"""``reap`` and a resume may meet; the status stays true."""

from collections.abc import Callable

import pytest

from mltrain.ownership import liveness
from mltrain.ownership.attempts import ending_tags
from mltrain.ownership.reaper import reap
from mltrain.tracking.tags import ATTEMPT_PREFIX
from tests.support.watched_runs import DEAD, Client, server, state

ELSEWHERE = {**liveness.own(), "boot": "another"}


def reaped(client: Client, meanwhile: Callable[[], None] = lambda: None) -> list[str]:
    return [one.found for one in reap(server(client), sleep=lambda seconds: meanwhile())]


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
