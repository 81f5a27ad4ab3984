"""``mltrain train``: trains a project, or resumes a run."""

import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer

from mltrain.cli import app
from mltrain.cli.arguments import CommandWithKeys, given, parse
from mltrain.errors import UsageError


class _Train(CommandWithKeys):
    """The command, whose ``--resume`` needs no value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give ``--resume`` without a value its default; see :mod:`mltrain.commands.resume_target`."""
        words = [
            "--resume=true" if word == "--resume" and (after.startswith("-") or "=" in after) else word
            for word, after in pairwise([*args, "--"])
        ]
        return super().parse_args(ctx, words)


@app.command(cls=_Train, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def train(
    arguments: list[str] = typer.Argument(
        None,
        metavar="[PROJECT] [key=value ...]",
        help="A registered name, a .py file or a folder with project.py; then configuration keys, also as --key value.",
        show_default=False,
    ),
    config: str = typer.Option(None, "--config", help="A YAML or JSON file that overrides the project's config.yaml."),
    preset: str = typer.Option(None, "--preset", help="A named overlay; every project has 'quick'."),
    name: str = typer.Option(None, "--name", help="The name of a new run."),
    experiment: str = typer.Option(None, "--experiment", help="The MLflow experiment of a new run."),
    resume: str = typer.Option(
        None,
        "--resume",
        metavar="ID|FILE",
        help="Continue a run, or the training that wrote a file. Without a value: the file of checkpoint_path.",
    ),
    resume_run: str = typer.Option(
        None, "--resume-run", metavar="ID", help="Continue this run; its first digits are enough."
    ),
    resume_from: str = typer.Option(
        None,
        "--resume-from",
        metavar="WHICH",
        help="latest, best, interrupted, epoch:N, step:N or a checkpoint's name.",
    ),
    fork_run: str = typer.Option(
        None, "--fork-run", metavar="ID", help="Start a new run from a checkpoint of this one."
    ),
    run_key: str = typer.Option(
        None,
        "--run-key",
        metavar="KEY",
        help="Continue the run with this key, or begin it; auto: the id of the job (torchrun, SLURM, SkyPilot, Kubernetes).",
    ),
    processes: str = typer.Option(
        None, "--processes", metavar="N", help="Train with N processes on this machine, started by torchrun."
    ),
    quick: bool = typer.Option(False, "--quick", help="The same as --preset quick."),
    take_over: bool = typer.Option(
        False, "--take-over", help="Do not wait for a lease held on another machine to expire."
    ),
    allow_change: bool = typer.Option(False, "--allow-change", help="Resume although the data have changed."),
    require_tracking: bool = typer.Option(
        False, "--require-tracking", help="Exit with 6 if the tracking store does not answer."
    ),
    default_project: str = typer.Option(None, "--default-project", hidden=True),
) -> None:
    """Train a project as an MLflow run, or continue one.

    mltrain train segmentation epochs=20 lr=1e-3

    mltrain train my_project.py --preset quick

    mltrain train --resume-run ID

    mltrain train my_project.py --run-key KEY

    mltrain train my_project.py --processes 4

    mltrain train segmentation --resume checkpoints/latest_checkpoint.pth
    """
    project, overrides = parse(arguments)
    words = given(
        {
            "project": project,
            "config": config,
            "preset": preset if preset is not None or not quick else "quick",
            "resume": resume,
            "resume_run": resume_run,
            "resume_from": resume_from,
            "fork_run": fork_run,
            "run_key": run_key,
            "processes": processes,
            "default_project": default_project,
        },
        overrides,
    )
    overrides |= given({"run_name": name, "experiment": experiment}, {})
    if "resume" in words and not words.keys() & {"resume_run", "fork_run"}:
        from mltrain.commands.resume_target import names_run

        if names_run(words["resume"]):
            words["resume_run"] = words.pop("resume")
    if "resume_run" in words and "fork_run" in words:
        raise UsageError("--resume-run continues a run, and --fork-run begins a new one. Expected one of the two.")
    if "processes" in words:
        from mltrain.commands.processes import run_in_processes

        code = run_in_processes(words["processes"], sys.argv[1:], words.get("run_key"))
        if code is not None:
            sys.exit(code)
    from mltrain.commands.ranks import is_one_of_several

    if "resume_run" in words and "project" not in words and not is_one_of_several(os.environ):
        from mltrain.cli.pipeline import resume_by_parent

        code = resume_by_parent(words["resume_run"], overrides, take_over=take_over, allow_change=allow_change)
        if code is not None:
            sys.exit(code)
    default = words.get("default_project") if not words.keys() & {"resume", "resume_run", "fork_run"} else None

    from mltrain.cli.display import Terminal
    from mltrain.commands.train import run_training
    from mltrain.commands.train_request import Request
    from mltrain.signals import Terminated

    try:
        outcome = run_training(
            Request(
                project=words.get("project", default),
                files=(Path(words["config"]),) if "config" in words else (),
                preset=words.get("preset"),
                overrides=overrides,
                resume=words.get("resume"),
                resume_run=words.get("resume_run"),
                resume_from=words.get("resume_from", "latest"),
                fork_run=words.get("fork_run"),
                run_key=words.get("run_key"),
                take_over=take_over,
                allow_change=allow_change,
                require_tracking=require_tracking,
            ),
            Terminal(),
        )
    except Terminated as stopped:  # click would exit with 130
        sys.exit(stopped.exit_code)
    if not outcome.delivered:
        # Everything is on disk; do not wait for threads that still wait for a server.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(outcome.exit_code)
    sys.exit(outcome.exit_code)
