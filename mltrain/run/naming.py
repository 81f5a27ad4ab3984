"""Names of new runs and of their experiments: what a reader of MLflow's pages sees first."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mltrain.compat.private import is_made_up

_LONGEST, _LONGEST_VALUE = 100, 24
"""Characters of a name before its time, and of one value in it."""
_ELSEWHERE = ("experiment", "run_name", "device", "num_threads")
"""Keys that MLflow's pages show beside the name, or that change no result."""


def short(project: str) -> str:
    """Return what a project is called: its registered name, or its file or folder without the way to it."""
    return project.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].removesuffix(".py").strip(". ") or "project"


def experiment_for(project: str, wanted: str | None) -> str | None:
    """Return the experiment of a new run: the wanted one, else the environment's, else one of the project's name.

    Args:
        project: name of the project or pipeline.
        wanted: what the user asked for.

    Returns:
        Its name; ``None`` leaves the choice to ``MLFLOW_EXPERIMENT_NAME`` and ``MLFLOW_EXPERIMENT_ID``.
    """
    chosen_outside = os.environ.get("MLFLOW_EXPERIMENT_NAME") or os.environ.get("MLFLOW_EXPERIMENT_ID")
    return wanted or (None if chosen_outside else short(project))


def run_name(project: str, preset: str | None = None, given: Mapping[str, Any] | None = None) -> str:
    """Return the name of a new run: its project, what differs from the project's defaults, and the time in UTC.

    Args:
        project: name of the project or pipeline.
        preset: of its configuration, if there is one.
        given: keys of its configuration that the user gave; places and long values are left out.
    """
    words = [short(project), *([preset] if preset else [])]
    for key, value in (given or {}).items():
        text = f"{key}={value}"
        short_enough = len(str(value)) <= _LONGEST_VALUE and len(" ".join((*words, text))) <= _LONGEST
        if short_enough and key not in _ELSEWHERE and not {"/", "\\"} & set(str(value)):
            words.append(text)
    # A name of our own: MLflow's would be drawn from Python's global random numbers, which belong to the training.
    return " ".join((*words, f"{datetime.now(UTC):%Y%m%d-%H%M%S}"))


def renamed(present: str | None, wanted: str | None, otherwise: str) -> str | None:
    """Return the new name of a run that ``mlflow run`` has made, or ``None`` if its name was chosen by the user.

    Args:
        present: its name.
        wanted: the name that the user asks for.
        otherwise: replaces a name that MLflow made up.
    """
    return wanted or (otherwise if not present or is_made_up(present) else None)
