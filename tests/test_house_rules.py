"""Rules for the tests and for the sizes of the house."""

import ast
import re
from pathlib import Path

import pytest

from benchmarks.house import code_lines, wide
from tests.faults.sabotages import SABOTAGES

TESTS = Path(__file__).parent
CLOCKS = ("sleep", "monotonic", "perf_counter", "process_time", "thread_time")
ALLOWED = {
    "support/waiting.py": "the one place that waits",
    "support/workplace.py": "waits for the output of a command, or for its end, whichever comes first",
    "support/tiny.py": "a project whose steps are slow when its configuration says so",
    "support/tiny_pipeline.py": "a pipeline whose stages are slow when their configuration says so",
    "projects/tool_wear/waves.py": "a training whose epochs are slow enough to be stopped",
    "faults/workers_project.py": "a project whose workers are slow enough to be killed at work",
    "faults/drawing_project.py": "a project whose steps leave other threads a turn",
    "faults/campaign.py": "measures how long a training takes, to draw a moment within it",
    "faults/test_ranks.py": "kills come at random moments of a training that lasts so long",
    "faults/test_random_kills.py": "measures how long a training takes, to draw a moment within it",
    "faults/test_random_signals.py": "the grace, which is promised in seconds",
    "faults/test_outage.py": "prints how long calls take; how long an outage lasts",
    "faults/test_tracking.py": "a server's Retry-After, which is a lower bound in seconds; how long a fault lasts",
    "delivery/test_journal_database.py": "a ratio of two measurements side by side",
    "ownership/test_lease.py": "sets the clock that the lease reads",
    "cli/test_pipeline.py": "reads a terminal until the command ends",
}
"""The files that read a clock or sleep, and why. What a test waits for is an event, and what it compares is no duration."""


def reads_a_clock(file: Path) -> bool:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            return True
        if isinstance(node, ast.Attribute) and node.attr in CLOCKS and ast.unparse(node.value) == "time":
            return True
        if isinstance(node, ast.Attribute) and node.attr == "wait" and ast.unparse(node.value).endswith("Event()"):
            return True  # a sleep by another name: nobody can set an event that has no name
    return False


def test_only_these_files_read_a_clock_or_sleep() -> None:
    found = {file.relative_to(TESTS).as_posix() for file in TESTS.rglob("*.py") if reads_a_clock(file)}
    assert found - ALLOWED.keys() == set(), "wait with tests.support.waiting.eventually, compare ratios or events"
    assert ALLOWED.keys() - found == set(), "these need no exception any more"


def test_every_file_over_300_lines_is_named_with_its_reason() -> None:
    package = TESTS.parent / "mltrain"
    long = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if len(file.read_text(encoding="utf-8").splitlines()) > 300
    }
    page = (TESTS.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("### Files over 300 lines")[1].split("\n#")[0]
    assert set(re.findall(r"^\* `(\S+)`: \S", section, re.MULTILINE)) == long


def test_every_sabotage_finds_its_text_once_and_its_test() -> None:
    for sabotage in SABOTAGES:
        assert (TESTS.parent / sabotage.file).read_text().count(sabotage.old) == 1, sabotage.name
        file, name = sabotage.test.split("[")[0].split("::")
        assert f"def {name}(" in (TESTS / file).read_text(), sabotage.name


@pytest.mark.parametrize(
    ("file", "name", "most"),
    [
        ("run/tracked.py", "TrackedRun", 150),
        ("trainer/loop.py", "Trainer", 120),
        ("manager.py", "CheckpointManager", 200),
    ],
)
def test_what_a_user_meets_first_stays_small(file: str, name: str, most: int) -> None:
    text = (TESTS.parent / "mltrain" / file).read_text(encoding="utf-8")
    owner = next(node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == name)
    assert len(code_lines(owner, text.splitlines())) <= most


@pytest.mark.parametrize("engine", ["lightning", "huggingface", "accelerate", "ignite"])
def test_an_adapter_stays_thin(engine: str) -> None:
    text = (TESTS.parent / "mltrain" / "adapters" / f"{engine}.py").read_text(encoding="utf-8")
    assert 50 <= len(code_lines(ast.parse(text), text.splitlines())) <= 160


def test_every_constructor_over_eight_arguments_is_named_with_its_reason() -> None:
    package = TESTS.parent / "mltrain"
    found = {owner for file in package.rglob("*.py") for owner, _ in wide(ast.parse(file.read_text(encoding="utf-8")))}
    page = (TESTS.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("### Constructors over 8 arguments")[1].split("\n#")[0]
    assert set(re.findall(r"^\* `(\S+)`: \S", section, re.MULTILINE)) == found
