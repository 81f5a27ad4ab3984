"""Parses configuration keys on the command line, and lists them."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import typer
from typer.core import TyperCommand

from mltrain.configuration.fields import NOT_GIVEN
from mltrain.errors import MltrainError, UsageError

_PROJECT = "project"
JSON = typer.Option(False, "--json", help="Print JSON.")


def parse(arguments: Iterable[str] | None) -> tuple[str | None, dict[str, str]]:
    """Split arguments into a project and configuration keys.

    ``key=value``, ``--key=value`` and ``--key value`` are accepted, which covers every form that ``mlflow run -P key=value``
    appends. A key whose value means "not given" is omitted; ``null`` means ``None``.

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
        elif "=" in word and not os.path.exists(word):  # noqa: PTH110 - Path.exists fails on a word too long for a path
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
    """Return options with a value; equally named keys count, too."""
    words = {**options, **{name: overrides.pop(name) for name in options if name in overrides}}
    return {name: value for name, value in words.items() if value is not None and value not in NOT_GIVEN}


class CommandWithKeys(TyperCommand):
    """A command whose help lists the named project's keys."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, and remember the project for the help."""
        flags = {"--help", *(name for one in self.params if getattr(one, "is_flag", False) for name in one.opts)}
        values = [False, *(word.startswith("-") and "=" not in word and word not in flags for word in args)]
        words = (word for word, is_value in zip(args, values, strict=False) if not is_value)
        ctx.meta[_PROJECT] = next((word for word in words if not word.startswith("-") and "=" not in word), None)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the project's own keys, then the common ones."""
        word = ctx.meta.get(_PROJECT)
        if word is None:
            formatter.write_paragraph()
            formatter.write_text("The keys of a project: mltrain train PROJECT --help")
            return
        from mltrain.config import Config
        from mltrain.project import find

        try:
            project = find(word)
        except MltrainError as error:
            formatter.write_paragraph()
            formatter.write_text(str(error))
            return
        fields = project.config.model_fields
        own = [name for name in fields if name not in Config.model_fields]
        for title, names in ((f"Keys of {project.name}", own), ("Keys of every training", list(Config.model_fields))):
            with formatter.section(title):
                formatter.write_dl(
                    [(_assignment(name, fields[name]), fields[name].description or "") for name in names]
                )


def _assignment(name: str, field: Any) -> str:
    """Return a key as ``lr: float = 0.001``."""
    annotation = field.annotation
    kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    kind = kind.replace("typing.", "").replace("pathlib.", "").replace("NoneType", "None")
    if field.is_required():
        return f"{name}: {kind} (required)"
    return f"{name}: {kind} = {field.get_default(call_default_factory=True)!r}"
