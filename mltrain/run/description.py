"""The description of a run for the MLflow UI."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mltrain.task import Task

WITH_REPORT = " --to evaluation"
"""Works for every task that has an evaluation; without a report, ``mltrain evaluate`` ignores it with a warning."""


def evaluation_options(task: "Task") -> str | None:
    """Return a task's options of ``mltrain evaluate``. ``None`` without an evaluation."""
    return WITH_REPORT if task.report is not None else "" if task.evaluate is not None else None


def note(project: str, run_id: str, best: str | None, attempts: Iterable[Any], evaluation: str | None) -> str:
    """Return the description of a run in Markdown.

    It has the project, the best checkpoint, the changes of each attempt, and the next commands. The first lines are short,
    because MLflow's page shows only a few.

    Args:
        project: name of the project.
        run_id: the run's id.
        best: the best checkpoint and its metric. ``None`` before the first checkpoint.
        attempts: all attempts of the run.
        evaluation: options of ``mltrain evaluate``. If ``None``, the task has no evaluation.
    """
    lines = [f"Training of `{_plain(project)}` by mltrain.{f' Best so far: {_plain(best)}.' if best else ''}", ""]
    for attempt in attempts:
        if attempt.resumed_from or attempt.changed:
            origin = _plain(attempt.resumed_from or "the start")
            lines.append(f"* Attempt {attempt.ordinal} continued from {origin}{_changes(attempt.changed)}")
    evaluate = [f"evaluate {run_id}{evaluation}"] if evaluation is not None else []
    commands = [f"train --resume-run {run_id}", *evaluate, f"pull {run_id} --to model"]
    return "\n".join([*lines, "", "```", *(f"mltrain {command}" for command in commands), "```"])


def _changes(changed: Mapping[str, Iterable[str]]) -> str:
    if not changed:
        return "."
    listed = ", ".join(f"{_plain(key)} {_plain(before)} → {_plain(now)}" for key, (before, now) in changed.items())
    return f" with {listed}."


def _plain(text: str) -> str:
    """Return text without characters of Markdown, HTML or terminals."""
    return re.sub(r"[<>`*\[\]\x00-\x1f\x7f-\x9f]", "", str(text))[:300]
