"""Pages of the documentation: their commands, and the tests that execute their blocks."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from mltrain.cli.arguments import parse
from mltrain.project import find, find_pipeline
from tests.support.pages import commands

CHECKOUT = Path(__file__).parents[2]
PLACEHOLDER = "tests/x/test_y.py"
"""Stands on a page for the path of any test."""
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]

OTHER_PROGRAMS = {
    "createdb": "PostgreSQL's; make servers has one",
    "export": "sets a variable",
    ".": "activates an environment",
    "pip": "the installation that make does",
    "sbatch": "Slurm, which is not here; what it wraps is parsed by itself",
    "torchrun": "what it starts is parsed, and its own options by test_what_launchers_start_is_a_command_that_there_is",
}
"""Commands of the documentation that no test starts or parses, each with its reason."""

NOT_EXECUTED = {
    "bat": "for Windows",
    "cron": "a line of a crontab; its command is that of the page on the command line",
    "text": "output, layouts and diagrams",
    "yaml": "jobs of clusters; test_what_launchers_start_is_a_command_that_there_is reads them",
}
"""Languages of blocks that no test executes, each with its reason."""

NOT_INSTALLED = {
    "ray": "an engine of its own, for which a stub stands; the block was run with ray 2.60.0, as the page says"
}
"""Packages whose names no test looks for, each with its reason."""

EXECUTED = {
    "README.md-0": "test_the_readme_project_trains_and_resumes",
    "accelerate.md-0": "adapters/test_documented.py",
    "accelerate.md-1": "adapters/test_documented.py",
    "distributed.md-0": "distributed/test_documented.py",
    "distributed.md-1": "distributed/test_documented.py",
    "huggingface.md-0": "adapters/test_documented.py",
    "huggingface.md-1": "adapters/test_documented.py",
    "ignite.md-0": "adapters/test_documented.py",
    "ignite.md-1": "adapters/test_documented.py",
    "ignite.md-2": "adapters/test_documented.py",
    "lightning.md-0": "adapters/test_documented.py",
    "lightning.md-1": "adapters/test_documented.py",
    "loops.md-0": "test_the_ten_lines_of_the_guide_for_loops_save_and_continue",
    "loops.md-1": "test_the_other_blocks_of_the_page_on_loops",
    "loops.md-2": "test_the_other_blocks_of_the_page_on_loops",
    "own_project.md-0": "test_the_tests_of_the_page_on_projects_are_tests",
    "own_project.md-1": "cli/test_model.py",
    "pipelines.md-0": "support/walks.py",
    "resume.md-0": "test_the_block_of_the_page_on_resuming_continues_a_run",
    "retention.md-0": "test_a_policy_of_ones_own_is_written_as_the_page_says",
    "segmentation.md-0": "support/walks.py",
    "style_transfer.md-0": "projects/style_transfer/test_command_line.py",
    "tool_wear.md-0": "guides/test_001_tool_wear.py",
}
"""Which test executes a block of Python, with the reader's objects before it and a run's id in place of ``RUN_ID``."""


def typed() -> list[tuple[str, str]]:
    """Return page and command of every line to type; of launchers the command that they start."""
    found = set()
    for page in PAGES:
        for command in commands(page):
            words = shlex.split(command)
            if "mltrain" in words[1:]:  # below torchrun
                words = words[words.index("mltrain") :]
            if not command.startswith("#!"):
                found.add((page.name, shlex.join(words)))
    return sorted(found)


def selections() -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield page, paths and names of every selection of tests. pytest finds them by parts of their names.

    ``… -k`` selects among the paths of the command before it, and ``test_…`` is the beginning of the name of a test in them.
    """
    for page in [*PAGES, CHECKOUT / "CONTRIBUTING.md"]:
        paths: list[str] = []
        for code in [*re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")), *commands(page)]:
            if re.fullmatch(r"test_\w+…", code):
                yield page.name, paths, [code.removesuffix("…")]
            elif code != PLACEHOLDER and re.search(r"\bpytest |(^| )tests/|(^| )… -", code):
                words = shlex.split(code)
                if "…" not in words:
                    paths = [word for word in words if word.startswith("tests/")]
                names = words[words.index("-k") + 1].split(" or ") if "-k" in words else []
                yield page.name, paths, names or [""] * ("pytest" in words and bool(paths))


def names_of_tests(path: str) -> list[str]:
    """Return (file, name) of the tests in a path."""
    place = CHECKOUT / path
    return [
        f"{file.relative_to(CHECKOUT)}::{node.name}"
        for file in ([place] if place.is_file() else place.rglob("test_*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def refuse_unknown_keys(word: str, settings: list[str]) -> None:
    """Load a project's configuration, or check stages and keys."""
    if word.endswith(".py") and not (CHECKOUT / word).exists():
        return  # the reader's own file
    if word == "cardiac":
        stages = {stage.name: stage.config.model_fields for stage in find_pipeline(word).pipeline.stages}
        for setting in settings:
            stage, _, key = setting.partition("=")[0].partition(".")
            assert key in stages[stage], setting
        return
    project = find(str(CHECKOUT / word) if word.endswith(".py") else word)
    _, overrides = parse(settings)
    project.config.load([project.config_file] if project.config_file else [], overrides=overrides)


def started_by(words: list[str]) -> list[str]:
    """Let torchrun parse its own options; return the command that it starts in every process."""
    from torch.distributed.run import parse_args

    assert words[0] == "torchrun"
    parsed = parse_args(words[1:])
    assert parsed.module
    return [parsed.training_script, *parsed.training_script_args]
