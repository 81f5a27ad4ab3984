"""``mltrain pipeline``: trains several models in order."""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mltrain.cli import app
from mltrain.cli.arguments import given, parse
from mltrain.configuration.fields import NOT_GIVEN
from mltrain.errors import UsageError, counted

if TYPE_CHECKING:
    from mltrain.pipelines.cleanup import Clearing
    from mltrain.pipelines.decisions import StageMode
    from mltrain.pipelines.plan import PipelineRequest
    from mltrain.pipelines.status import Row
    from mltrain.project import Located

_MODES = ("scratch", "resume", "skip")
_MENU: "dict[str, StageMode | None]" = {
    **dict.fromkeys(("1", "s", "scratch"), "scratch"),
    **dict.fromkeys(("2", "r", "resume"), "resume"),
    **dict.fromkeys(("3", "k", "skip"), "skip"),
    **dict.fromkeys(("4", "q", "quit"), None),
}
"""All answers of the menu; they must match in full, since ``s`` of ``skip`` would clear everything."""
_QUESTION = """What next?
  1  scratch: clear everything that this pipeline run made, and run it all
  2  resume: continue where it stopped
  3  skip: run only the stages that are missing, damaged or out of date
  4  quit"""


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def pipeline(
    arguments: list[str] = typer.Argument(
        None,
        metavar="[NAME] [key=value | stage.key=value ...]",
        help="A registered pipeline, a .py file with PIPELINE or a folder with pipeline.py; then configuration keys.",
        show_default=False,
    ),
    run: str = typer.Option(
        None, "--run", metavar="ID", help="The pipeline's run, or 'new'. Default: your newest run in the experiment."
    ),
    mode: str = typer.Option(
        None,
        "--mode",
        help="resume: continue. skip: run what is missing, damaged or out of date. scratch: run everything again.",
    ),
    start: str = typer.Option(
        None, "--from", metavar="STAGE", help="Run this stage and the stages that depend on it again."
    ),
    only: str = typer.Option(
        None,
        "--stage",
        metavar="STAGE",
        help="Retrain only this stage; with --mode resume or skip, continue only this stage.",
    ),
    use: list[str] = typer.Option(None, "--use", metavar="STAGE=RUN", help="A run to use as the result of a stage."),
    status: bool = typer.Option(False, "--status", help="Show the stages and the next action of each; change nothing."),
    follow: str = typer.Option(None, "--follow", metavar="STAGE", help="Show the log of a stage while it runs."),
    preset: str = typer.Option(None, "--preset", help="A named overlay of the configuration."),
    config: Path = typer.Option(None, "--config", help="A YAML or JSON file with a section for each stage."),
    take_over: bool = typer.Option(
        False, "--take-over", help="Do not wait for a lease held on another machine to expire."
    ),
    allow_change: bool = typer.Option(
        False, "--allow-change", help="Continue a training although its data have changed."
    ),
    yes: bool = typer.Option(False, "--yes", help="Clear without asking."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON. Never asks, so clearing needs --yes."),
) -> None:
    """Run, resume or skip the stages of a pipeline.

    They run in order, each as a child run of the pipeline's run.

    mltrain pipeline cardiac --preset quick --mode resume

    mltrain pipeline cardiac --status

    mltrain pipeline cardiac --mode skip infarct.lr=1e-3
    """
    word, overrides = parse(arguments)
    words = given({"run": run, "mode": mode, "from": start, "stage": only, "preset": preset}, overrides)
    if words.get("mode") not in (None, *_MODES):
        raise UsageError(f"--mode {words['mode']} is unknown. Expected one of {', '.join(_MODES)}.")
    from mltrain.pipelines.plan import PipelineRequest

    chosen: Any = words.get("mode")
    if chosen is None and not status:
        chosen = "scratch" if "stage" in words else "resume" if "from" in words else None
    request = PipelineRequest(
        located=_located(word, words.get("run")),
        mode=chosen or "skip",
        run=words.get("run"),
        start=words.get("from"),
        only=words.get("stage"),
        use=_uses([*(use or []), *filter(None, [overrides.pop("use", None)])]),
        preset=words.get("preset"),
        files=[config] if config is not None and str(config) not in NOT_GIVEN else [],
        overrides=overrides,
        take_over=take_over,
        allow_change=allow_change,
    )
    if follow is not None:
        _follow(request, follow)
    elif status:
        _show_status(request, as_json)
    elif chosen is not None or (request := _asked(request, as_json)) is not None:
        sys.exit(_run(request, yes, as_json))


def resume_by_parent(run_id: str, overrides: dict[str, str], *, take_over: bool, allow_change: bool) -> int | None:
    """Resume the pipeline of a run given to ``mltrain train``.

    Returns:
        The exit code, or ``None`` if the run is not the run of a pipeline.
    """
    from mltrain.run.naming import full_id
    from mltrain.tracking.client import TRAINING_RETRY_SECONDS, connect
    from mltrain.tracking.tags import PIPELINE_TAG, STAGE_TAG

    server = connect(retry_seconds=TRAINING_RETRY_SECONDS)
    run_id = full_id(server, run_id)
    tags = server.run(run_id).data.tags
    if PIPELINE_TAG not in tags or STAGE_TAG in tags:
        return None
    from mltrain.pipelines.plan import PipelineRequest

    request = PipelineRequest(
        located=_located(None, run_id),
        mode="resume",
        run=run_id,
        overrides=overrides,
        take_over=take_over,
        allow_change=allow_change,
    )
    return _run(request, yes=False, as_json=False)


def _run(request: "PipelineRequest", yes: bool, as_json: bool) -> int:
    """Run a pipeline; return the exit code."""
    from mltrain.cli.display import TerminalPipeline, print_result
    from mltrain.commands.ranks import refuse_several
    from mltrain.pipelines.plan import PipelineDisplay
    from mltrain.pipelines.runner import run as run_pipeline
    from mltrain.signals import Terminated

    refuse_several()
    display = PipelineDisplay() if as_json else TerminalPipeline(request.located.pipeline)
    try:
        with redirect_stdout(sys.stderr) if as_json else nullcontext():  # what stages print is no JSON
            result = run_pipeline(request, display, lambda cleared: _confirmed(cleared, yes, as_json))
    except Terminated as stopped:  # click would exit with 130
        return stopped.exit_code
    if as_json:
        print_result(result)
    return result.exit_code


def _located(word: str | None, run: str | None) -> "Located":
    from mltrain.project import PIPELINES, find_pipeline

    if word is not None:
        return find_pipeline(word)
    if run is None or run == "new":
        known = ", ".join(sorted(entry.name for entry in metadata.entry_points(group=PIPELINES))) or "none"
        raise UsageError(f"No pipeline is named. Registered: {known}. Try: mltrain pipeline NAME, or --run ID")
    from mltrain.pipelines.pipeline_run import parent_of
    from mltrain.tracking.client import connect_to_read
    from mltrain.tracking.tags import PROJECT_TAG

    return find_pipeline(parent_of(connect_to_read(), run).data.tags.get(PROJECT_TAG, ""), recorded=True)


def _uses(words: Sequence[str]) -> dict[str, str]:
    found = {}
    for word in (part for one in words for part in one.split(",") if one not in NOT_GIVEN):
        stage, _, run_id = word.partition("=")
        if not stage or not run_id:
            raise UsageError(f"--use {word} is invalid. Expected STAGE=RUN_ID.")
        found[stage] = run_id
    return found


def _show_status(request: "PipelineRequest", as_json: bool) -> "list[Row]":
    """Print the status; return the state of every stage."""
    from mltrain.cli.display import print_status
    from mltrain.pipelines.plan import planned
    from mltrain.pipelines.status import status
    from mltrain.run.listing import row
    from mltrain.tracking.client import connect_to_read

    server, pipeline = connect_to_read(), request.located.pipeline
    found = planned(server, request)
    about = {"run_id": None} if found.parent is None else row(server, found.parent)
    rows = status(server, pipeline, found, request.mode)
    print_status({"pipeline": pipeline.name, **about}, rows, as_json)
    return rows


def _asked(request: "PipelineRequest", as_json: bool) -> "PipelineRequest | None":
    """Show the status and ask for a mode; ``None`` quits."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or as_json:
        raise UsageError(
            "No mode is given. Expected --mode resume (continue), --mode skip (run what is missing, damaged or out of "
            "date) or --mode scratch (run everything again). Try: --status, which only shows the stages"
        )
    for row in _show_status(request, as_json=False):
        print(f"  [{'x' if row.state in ('done', 'given') else ' '}] {row.stage}: {row.state}")
    print(_QUESTION)
    while (answer := typer.prompt("Choice [1-4]", default="4").strip().lower()) not in _MENU:
        print(f"{answer!r:.40} is not an option. Expected 1, 2, 3 or 4; scratch, resume, skip or quit.")
    mode = _MENU[answer]
    if mode is None:
        print("Nothing was done.")
        return None
    return replace(request, mode=mode)


def _confirmed(cleared: "Sequence[Clearing]", yes: bool, as_json: bool) -> bool:
    """List what would be cleared, and ask for confirmation."""
    out = sys.stderr if as_json else sys.stdout
    for one in cleared:
        made = [f"{counted(len(one.checkpoints), 'checkpoint')} ({one.bytes / 1e6:.1f} MB)"] if one.checkpoints else []
        made += [counted(len(one.outputs), "output")] if one.outputs else []
        print(f"would clear  {one.stage}: run {one.run_id} ({one.name}), {', '.join(made) or 'empty'}", file=out)
        for identity, reason in one.kept.items():
            print(f"  kept       {identity.name}  {reason}", file=out)
    if yes:
        return True
    if as_json or not sys.stdin.isatty():
        raise UsageError("The runs listed would be cleared. Try: --yes, which clears them without asking")
    return typer.confirm("Clear these?")


def _follow(request: "PipelineRequest", stage: str) -> None:
    from mltrain.errors import RunNotFound
    from mltrain.pipelines.event_log import followed
    from mltrain.pipelines.pipeline_run import children, chosen_parent
    from mltrain.tracking.client import connect_to_read

    server, located = connect_to_read(), request.located
    name = located.pipeline.stage(stage).name
    parent = chosen_parent(server, located.pipeline, request.run, request.overrides.get("experiment"))
    found = children(server, parent, name) if parent is not None else []
    if not found:
        raise RunNotFound(f"The stage {name!r} has no run yet. Try: mltrain pipeline {located.word} --status")
    try:
        for line in followed(server, found[0].info.run_id):
            print(line, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
