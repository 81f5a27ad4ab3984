"""The example project, and variants of it with something replaced."""

from pathlib import Path
from typing import Any

from mltrain.project import Project
from tests.support import tiny

TINY = Project("tiny", tiny.Config, tiny.build, Path(tiny.__file__))


def built_with(**changes: Any) -> Project:
    """A tiny project with a task that cannot be trained."""

    def build(config: tiny.Config) -> Any:
        task = tiny.build(config)
        given = {name: getattr(task, name) for name in ("step", "loader", "evaluate", "images", "report", "state")}
        return type(task)(**{**given, **changes})

    return Project("tiny", tiny.Config, build, Path(tiny.__file__))
