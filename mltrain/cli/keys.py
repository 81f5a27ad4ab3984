"""``mltrain train PROJECT --help``: the keys of a project beside the options of the command."""

from typing import Any

from typer.core import TyperCommand

from mltrain.errors import MltrainError

_PROJECT = "project"


class CommandWithKeys(TyperCommand):
    """A command whose help lists the configuration keys of the project that is named before ``--help``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, and remember the project's name for the help."""
        flags = {"--help", *(name for one in self.params if getattr(one, "is_flag", False) for name in one.opts)}
        values = [False, *(word.startswith("-") and "=" not in word and word not in flags for word in args)]
        named = (
            word for word, is_value in zip(args, values, strict=False) if not is_value and _may_name_a_project(word)
        )
        ctx.meta[_PROJECT] = next(named, None)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the project's own keys, then those of every training."""
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


def _may_name_a_project(word: str) -> bool:
    return not word.startswith("-") and "=" not in word


def _assignment(name: str, field: Any) -> str:
    """Return a key with its type and default, such as ``lr: float = 0.001``."""
    annotation = field.annotation
    kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    kind = kind.replace("typing.", "").replace("pathlib.", "").replace("NoneType", "None")
    if field.is_required():
        return f"{name}: {kind} (required)"
    return f"{name}: {kind} = {field.get_default(call_default_factory=True)!r}"
