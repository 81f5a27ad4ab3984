"""Rules for tests, and limits of the sizes of files."""

import ast
import re
from contextlib import suppress
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


def patched_constants(source: str) -> list[str]:
    """Return the constants that a test replaces. They are mltrain's or a project's; a script that a test starts counts."""
    tree, found = ast.parse(source), []
    names = {"mltrain": "mltrain", "projects": "projects"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names |= {one.asname or one.name: origin + one.name for one in node.names}

    def of(owner: ast.expr) -> str:
        if isinstance(owner, ast.Constant | ast.JoinedStr):
            return ast.unparse(owner).strip("f'\"")
        first, _, rest = f"{ast.unparse(owner)}.".partition(".")
        return f"{names.get(first, '')}.{rest}".rstrip(".")

    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and re.search(r"\b(setattr|patch)\b", ast.unparse(node.func)):
            owner, attribute = of(node.args[0]), node.args[1] if node.args[1:] else None
            found += [owner, *(f"{owner}.{one.arg}" for one in node.keywords)]
            found += [f"{owner}.{attribute.value}"] if isinstance(attribute, ast.Constant) else []
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [of(target) for target in targets if isinstance(target, ast.Attribute)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "mltrain" in node.value:
            with suppress(SyntaxError):
                found += patched_constants(node.value)
    return [one for one in found if re.fullmatch(r"(mltrain|projects)\..*\b_?[A-Z][A-Z0-9_]+", one)]


def test_no_test_replaces_a_constant() -> None:
    files = (file for file in TESTS.rglob("*.py") if file != Path(__file__))  # this one has the spellings below
    found = {file.relative_to(TESTS).as_posix(): patched_constants(file.read_text(encoding="utf-8")) for file in files}
    assert {file: names for file, names in found.items() if names} == {}, "make it an argument, and pass that"


@pytest.mark.parametrize(
    "spelling",
    [
        'monkeypatch.setattr("mltrain.store.direct.BLOCK", 1)',
        'monkeypatch.setattr(f"mltrain.store.{module}.BLOCK", 1)',
        'from mltrain.store import direct\nmonkeypatch.setattr(direct, "BLOCK", 1)',
        'import mltrain.store.direct as file\nsetattr(file, "BLOCK", 1)',
        'import mltrain.store.direct\nmonkeypatch.setattr(mltrain.store.direct, "_BLOCK", 1)',
        'from projects.tool_wear.model import Net\nmonkeypatch.setattr(Net, "SIZE", 1)',
        'with mock.patch("projects.tool_wear.model.SIZE", 1): pass',
        'from mltrain.store import direct\nwith patch.object(direct, "BLOCK", 1): pass',
        'patch.multiple("mltrain.store.direct", BLOCK=1)',
        "from mltrain.store import direct\ndirect.BLOCK = 1",
        "from mltrain.store import direct\ndirect.BLOCK += 1",
        "run([python, '-c', 'from mltrain.store import direct\\ndirect.BLOCK = 1'])",
    ],
)
def test_a_replaced_constant_is_found_however_it_is_spelled(spelling: str) -> None:
    assert len(patched_constants(spelling)) == 1


@pytest.mark.parametrize(
    "spelling",
    [
        'monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4)',
        'from mltrain.store import direct\nmonkeypatch.setattr(direct, "write_direct", refuse)',
        'from mltrain.run.tracked import RunCreation\nmonkeypatch.setattr(RunCreation, "info", refuse)',
        'monkeypatch.setenv("MLTRAIN_HOME", "/tmp")',
        "from tests.compat.test_rest import Serving\nServing.PARTS = True",
        "from mltrain.store import direct\nsize = direct.BLOCK",
    ],
)
def test_a_function_and_the_constant_of_another_package_may_be_replaced(spelling: str) -> None:
    assert patched_constants(spelling) == []
