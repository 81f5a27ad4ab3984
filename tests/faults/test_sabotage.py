"""Each mistake that would lose a checkpoint fails its test.

A seeded sample of five; all of them with ``MLTRAIN_SWEEP=full``.
"""

import json
import subprocess
import sys

import pytest

from tests.faults import sabotages

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1000)]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bool]]:
    command = [sys.executable, sabotages.__file__, str(tmp_path_factory.mktemp("sabotages"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return {said["name"]: said for said in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("sabotage", sabotages.CHOSEN, ids=lambda sabotage: sabotage.name.replace(" ", "-"))
def test_the_named_test_notices_the_mistake(sabotage: sabotages.Sabotage, outcomes: dict[str, dict[str, bool]]) -> None:
    outcome = outcomes[sabotage.name]
    assert outcome["before"], "without a mistake the tests pass"
    assert not outcome["after"], f"{sabotage.test} passes although {sabotage.name}"


def test_every_mistake_can_still_be_made() -> None:
    for sabotage in sabotages.SABOTAGES:
        text = (sabotages.ROOT / sabotage.file).read_text(encoding="utf-8")
        assert text.count(sabotage.old) == 1, f"{sabotage.name}: the place in {sabotage.file} was changed"
