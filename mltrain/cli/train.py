"""``mltrain train``."""

import os
import sys
from pathlib import Path

import typer

from mltrain.config import NOT_GIVEN
from mltrain.errors import UsageError

_GIVEN_AS_WORDS = {"project", "resume_run", "resume_from", "fork_run", "preset", "config", "default_project"}


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(train)


def train(
    arguments: list[str] = typer.Argument(
        None,
        metavar="[PROJECT] [key=value ...]",
        help="A registered name, a .py file or a folder with project.py; then configuration keys, also as --key value.",
        show_default=False,
    ),
    config: Path = typer.Option(None, "--config", help="A YAML or JSON file laid over the project's config.yaml."),
    preset: str = typer.Option(None, "--preset", help="A named overlay; every project has 'quick'."),
    name: str = typer.Option(None, "--name", help="The name of a new run."),
    experiment: str = typer.Option(None, "--experiment", help="The MLflow experiment of a new run."),
    resume_run: str = typer.Option(None, "--resume-run", metavar="ID", help="Continue this run."),
    resume_from: str = typer.Option(
        None,
        "--resume-from",
        metavar="WHICH",
        help="latest, best, interrupted, epoch:N, step:N or a checkpoint's name.",
    ),
    fork_run: str = typer.Option(
        None, "--fork-run", metavar="ID", help="Start a new run from a checkpoint of this one."
    ),
    take_over: bool = typer.Option(False, "--take-over", help="Do not wait for a holder on another machine."),
    allow_change: bool = typer.Option(False, "--allow-change", help="Resume although the data have changed."),
    require_tracking: bool = typer.Option(
        False, "--require-tracking", help="Do not begin without a tracking server that answers."
    ),
    default_project: str = typer.Option(None, "--default-project", hidden=True),
) -> None:
    """Train a project as an MLflow run, or continue a run.

    mltrain train segmentation epochs=20 lr=1e-3

    mltrain train my_project.py --preset quick

    mltrain train --resume-run ID
    """
    project, overrides = parse(arguments or [])
    words = {
        "config": str(config) if config is not None else None,
        "preset": preset,
        "resume_run": resume_run,
        "resume_from": resume_from,
        "fork_run": fork_run,
        "project": project,
    }
    for word in _GIVEN_AS_WORDS & overrides.keys():
        words[word] = overrides.pop(word)
    given = {word: value for word, value in words.items() if value is not None and value not in NOT_GIVEN}
    for key, option in (("run_name", name), ("experiment", experiment)):
        if option is not None and option not in NOT_GIVEN:
            overrides[key] = option
    if "resume_run" in given and "fork_run" in given:
        raise UsageError("--resume-run continues a run and --fork-run begins a new one: give one of the two.")
    if not given.keys() & {"project", "resume_run", "fork_run"} and default_project is not None:
        given["project"] = default_project

    if "resume_run" in given and "project" not in given:
        from mltrain.cli.pipeline import resume_by_parent

        code = resume_by_parent(given["resume_run"], overrides, take_over=take_over, allow_change=allow_change)
        if code is not None:
            sys.exit(code)

    from mltrain.cli.display import Terminal
    from mltrain.commands.train import train as run_training
    from mltrain.commands.train_request import Request

    outcome = run_training(
        Request(
            project=given.get("project"),
            files=(Path(given["config"]),) if "config" in given else (),
            preset=given.get("preset"),
            overrides=overrides,
            resume_run=given.get("resume_run"),
            resume_from=given.get("resume_from", "latest"),
            fork_run=given.get("fork_run"),
            take_over=take_over,
            allow_change=allow_change,
            require_tracking=require_tracking,
        ),
        Terminal(),
    )
    if not outcome.delivered:
        # Everything is on the disk. Threads that are still waiting for a server must not hold the process any longer.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(outcome.exit_code)
    sys.exit(outcome.exit_code)


def parse(arguments: list[str]) -> tuple[str | None, dict[str, str]]:
    """Split what is left of a command line into a project and configuration keys.

    ``key=value``, ``--key=value`` and ``--key value`` are accepted, so that whatever ``mlflow run -P key=value`` appends
    arrives; a value that means "not given" leaves its key out, and ``null`` means none.

    Raises:
        UsageError: a second project, or a key without a value.
    """
    project: str | None = None
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            key, equals, value = word.lstrip("-").partition("=")
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise UsageError(f"{word} has no value: {word} VALUE or {word.lstrip('-')}=VALUE was expected.")
                value = rest.pop(0)
        elif "=" in word and not os.path.exists(word):  # noqa: PTH110 - a word too long for a path is no error
            key, _, value = word.partition("=")
        elif project is None:
            project = word
            continue
        else:
            raise UsageError(f"{word!r}: the project is {project!r} already; configuration is given as key=value.")
        if value not in NOT_GIVEN - {"null"}:
            overrides[key.replace("-", "_")] = value
    return project, overrides
