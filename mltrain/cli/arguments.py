"""Splits what is left of a command line into a project and configuration keys."""

import os
from collections.abc import Iterable, Mapping

from mltrain.configuration.fields import NOT_GIVEN
from mltrain.errors import UsageError


def parse(arguments: Iterable[str] | None) -> tuple[str | None, dict[str, str]]:
    """Split arguments into a project and configuration keys.

    ``key=value``, ``--key=value`` and ``--key value`` are accepted, so that everything ``mlflow run -P key=value`` appends
    arrives. A value that means "not given" leaves its key out, and ``null`` means ``None``.

    Raises:
        UsageError: a second project, or a key without a value.
    """
    project: str | None = None
    overrides: dict[str, str] = {}
    rest = list(arguments or ())
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            key, equals, value = word.lstrip("-").partition("=")
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise UsageError(f"{word} has no value. Expected {word} VALUE or {word.lstrip('-')}=VALUE.")
                value = rest.pop(0)
        elif "=" in word and not os.path.exists(word):  # noqa: PTH110 - a word too long for a path is no error
            key, _, value = word.partition("=")
        elif project is None:
            project = word
            continue
        else:
            raise UsageError(f"{word!r} is a second project after {project!r}. Expected configuration as key=value.")
        if value not in NOT_GIVEN - {"null"}:
            overrides[key.replace("-", "_")] = value
    return project, overrides


def given(options: Mapping[str, str | None], overrides: dict[str, str]) -> dict[str, str]:
    """Return the options that have a value; a configuration key of an option's name is taken out and used instead."""
    words = {**options, **{name: overrides.pop(name) for name in options if name in overrides}}
    return {name: value for name, value in words.items() if value is not None and value not in NOT_GIVEN}
