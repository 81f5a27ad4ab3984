"""A process is told from all others by what the kernel guarantees; where that does not reach, nothing is claimed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from mltrain import process

SLEEPING = (
    "import json, sys; from mltrain import process; print(json.dumps(process.own()), flush=True); sys.stdin.read()"
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
    assert process.same(who, process.described(other.pid))
    assert process.is_alive(who) is True
    other.kill()
    zombie = psutil.Process(other.pid)
    while zombie.status() != psutil.STATUS_ZOMBIE:
        pass
    assert process.is_alive(who) is False
    other.wait()
    assert process.is_alive(who) is False


def test_a_clock_that_is_set_kills_nobody() -> None:
    who = process.own()
    assert process.is_alive({**who, "born": who["born"] - 86_400}) is True


def test_an_id_that_is_used_again_is_another_process() -> None:
    who = process.own()
    assert process.is_alive({**who, "ticks": who["ticks"] - 1}) is False


@pytest.mark.parametrize("key", ["boot", "namespace"])
def test_of_another_kernel_or_container_nothing_is_known(key: str) -> None:
    gone = {**process.own(), "pid": 2**22 + 1}
    assert process.is_alive(gone) is False
    assert process.is_alive({**gone, key: "another"}) is None
    assert process.is_alive({**process.own(), key: "another"}) is None


def test_a_machine_of_another_name_with_the_same_boot_may_be_a_clone() -> None:
    who = {**process.own(), "host": "another"}
    assert process.is_alive(who) is True
    assert process.is_alive({**who, "pid": 2**22 + 1}) is None


def test_what_earlier_versions_recorded_proves_life_and_never_death() -> None:
    old = {key: process.own()[key] for key in ("host", "boot", "pid", "born")}
    assert process.is_alive(old) is True
    assert process.is_alive({**old, "born": old["born"] - 3}) is None
    assert process.is_alive({**old, "pid": 2**22 + 1}) is None


@pytest.mark.parametrize("damaged", [{}, {"pid": "x"}, {"pid": None}, {"pid": 0}, {"pid": -1}, {"pid": 10**30}])
def test_a_damaged_description_is_of_nobody_known(damaged: dict[str, Any]) -> None:
    assert process.is_alive(damaged) is None


def test_two_processes_are_not_the_same(other: "subprocess.Popen[str]") -> None:
    assert process.same(process.own(), process.own())
    assert not process.same(process.own(), said(other))
    assert not process.same({}, {})
