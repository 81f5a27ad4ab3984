"""The kernel tells processes apart; without it nothing is claimed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from mltrain.ownership import liveness

SLEEPING = (
    "import json, sys; from mltrain.ownership import liveness; "
    "print(json.dumps(liveness.own()), flush=True); sys.stdin.read()"
)


@pytest.fixture
def other() -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        yield running
        running.kill()


def said(by: "subprocess.Popen[str]") -> dict[str, Any]:
    assert by.stdout is not None
    return dict(json.loads(by.stdout.readline()))


def test_another_process_is_alive_until_it_ends_and_dead_before_it_is_waited_for(
    other: "subprocess.Popen[str]",
) -> None:
    who = said(other)
    assert liveness.same(who, liveness.described(other.pid))
    assert liveness.is_alive(who) is True
    other.kill()
    zombie = psutil.Process(other.pid)
    while zombie.status() != psutil.STATUS_ZOMBIE:
        pass
    assert liveness.is_alive(who) is False
    other.wait()
    assert liveness.is_alive(who) is False


def test_a_clock_that_is_set_kills_nobody() -> None:
    who = liveness.own()
    assert liveness.is_alive({**who, "born": who["born"] - 86_400}) is True


def test_an_id_that_is_used_again_is_another_process() -> None:
    who = liveness.own()
    assert liveness.is_alive({**who, "ticks": who["ticks"] - 1}) is False


@pytest.mark.parametrize("key", ["boot", "namespace"])
def test_of_another_kernel_or_container_nothing_is_known(key: str) -> None:
    gone = {**liveness.own(), "pid": 2**22 + 1}
    assert liveness.is_alive(gone) is False
    assert liveness.is_alive({**gone, key: "another"}) is None
    assert liveness.is_alive({**liveness.own(), key: "another"}) is None


def test_a_machine_of_another_name_with_the_same_boot_may_be_a_clone() -> None:
    who = {**liveness.own(), "host": "another"}
    assert liveness.is_alive(who) is True
    assert liveness.is_alive({**who, "pid": 2**22 + 1}) is None


def test_what_earlier_versions_recorded_proves_life_and_never_death() -> None:
    old = {key: liveness.own()[key] for key in ("host", "boot", "pid", "born")}
    assert liveness.is_alive(old) is True
    assert liveness.is_alive({**old, "born": old["born"] - 3}) is None
    assert liveness.is_alive({**old, "pid": 2**22 + 1}) is None


@pytest.mark.parametrize("damaged", [{}, {"pid": "x"}, {"pid": None}, {"pid": 0}, {"pid": -1}, {"pid": 10**30}])
def test_a_damaged_description_is_of_nobody_known(damaged: dict[str, Any]) -> None:
    assert liveness.is_alive(damaged) is None


def test_the_advice_is_for_the_process_that_holds_a_run(other: "subprocess.Popen[str]") -> None:
    assert "--take-over" in liveness.advice(said(other))
    assert "--take-over" in liveness.advice({})
    own = liveness.advice(liveness.own())
    assert "close() of its manager" in own
    assert "training in this process ends" in own  # mltrain.train has no manager to close


def test_two_processes_are_not_the_same(other: "subprocess.Popen[str]") -> None:
    assert liveness.same(liveness.own(), liveness.own())
    assert not liveness.same(liveness.own(), said(other))
    assert not liveness.same({}, {})
