"""Every mistake that would lose a checkpoint is noticed by the test that is named beside it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import sabotages

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1000)]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bool]]:
    command = [sys.executable, sabotages.__file__, str(tmp_path_factory.mktemp("sabotages"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return {said["name"]: said for said in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("sabotage", sabotages.SABOTAGES, ids=lambda sabotage: sabotage.name.replace(" ", "-"))
def test_the_named_test_notices_the_mistake(sabotage: sabotages.Sabotage, outcomes: dict[str, dict[str, bool]]) -> None:
    outcome = outcomes[sabotage.name]
    assert outcome["before"], "without a mistake the tests pass"
    assert not outcome["after"], f"{sabotage.test} passes although {sabotage.name}"


def test_there_are_at_least_ten() -> None:
    assert len({sabotage.name for sabotage in sabotages.SABOTAGES}) >= 10
    assert Path(sabotages.__file__).parent == Path(__file__).parent
