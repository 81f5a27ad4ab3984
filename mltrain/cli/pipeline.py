"""``mltrain pipeline``: several models trained in order, as one thing."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mltrain.cli.train import parse
from mltrain.config import NOT_GIVEN
from mltrain.errors import UsageError

if TYPE_CHECKING:
    from mltrain.pipelines.cleanup import Clearing
    from mltrain.project import Located

_MODES = ("scratch", "resume", "skip")
_QUESTION = """What next?
  r  resume: continue where it stopped
  k  skip what is done and unchanged, run the rest
  s  scratch: clear everything that this pipeline run made, and run it all
  f  run a stage, and what builds on it, anew
  o  retrain one stage only
  q  quit"""
_MENU = {"r": "resume", "k": "skip", "s": "scratch"}


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("pipeline", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(pipeline)


def pipeline(
    arguments: list[str] = typer.Argument(
        None,
        metavar="[NAME] [key=value | stage.key=value ...]",
        help="A registered pipeline, a .py file with PIPELINE or a folder with pipeline.py; then configuration keys.",
        show_default=False,
    ),
    run: str = typer.Option(
        None, "--run", metavar="ID", help="The pipeline's run, or 'new'; without it your newest in the experiment."
    ),
    mode: str = typer.Option(
        None, "--mode", help="resume: continue. skip: run what is missing, damaged or out of date. scratch: all anew."
    ),
    start: str = typer.Option(None, "--from", metavar="STAGE", help="Run this stage, and what builds on it, anew."),
    only: str = typer.Option(
        None, "--stage", metavar="STAGE", help="Only this stage: retrain it; with --mode resume or skip, do that."
    ),
    use: list[str] = typer.Option(
        None, "--use", metavar="STAGE=RUN", help="A run trained elsewhere in a stage's place; STAGE=none: no longer."
    ),
    status: bool = typer.Option(False, "--status", help="Show the stages and what would be done, and change nothing."),
    follow: str = typer.Option(None, "--follow", metavar="STAGE", help="Show the log of a stage while it runs."),
    preset: str = typer.Option(None, "--preset", help="A named overlay of the configuration."),
    config: Path = typer.Option(None, "--config", help="A YAML or JSON file with a section a stage."),
    take_over: bool = typer.Option(False, "--take-over", help="Do not wait for a holder on another machine."),
    allow_change: bool = typer.Option(False, "--allow-change", help="Continue a training although its data changed."),
    yes: bool = typer.Option(False, "--yes", help="Clear without asking."),
    as_json: bool = typer.Option(False, "--json", help="As JSON, for programs; does not ask, so needs --yes to clear."),
) -> None:
    """Run the stages of a pipeline in order, each as a run under one parent run; skip, resume or run each as it needs.

    mltrain pipeline cardiac --preset quick --mode resume

    mltrain pipeline cardiac --status

    mltrain pipeline cardiac --mode skip infarct.lr=1e-3
    """
    word, overrides = parse(arguments or [])
    given = {"run": run, "mode": mode, "from": start, "stage": only, "preset": preset}
    given |= {name: overrides.pop(name) for name in list(given) if name in overrides}
    said = {name: value for name, value in given.items() if value is not None and value not in NOT_GIVEN}
    if said.get("mode") not in (None, *_MODES):
        raise UsageError(f"--mode {said['mode']}: {', '.join(_MODES)} was expected.")
    uses = _uses([*(use or []), *filter(None, [overrides.pop("use", None)])])
    located = _located(word, said.get("run"))
    files = [config] if config is not None and str(config) not in NOT_GIVEN else []
    if follow is not None:
        _follow(located, said.get("run"), follow, overrides.get("experiment"))
        return
    if status:
        rows = _rows(located, said, files, overrides, uses)
        _show(rows, as_json)
        return
    chosen, stages = said.get("mode"), {"from": said.get("from"), "stage": said.get("stage")}
    if chosen is None and not any(stages.values()):
        if not (sys.stdin.isatty() and sys.stdout.isatty()) or as_json:
            raise UsageError(
                "Say what to do: --mode resume (continue), --mode skip (run what is missing, damaged or out of date) or "
                "--mode scratch (all anew); --status only shows."
            )
        _show(_rows(located, said, files, overrides, uses), as_json=False)
        chosen, stages = _asked(located)
        if chosen is None:
            return
    from mltrain.pipelines.request import Order
    from mltrain.pipelines.runner import run as run_pipeline

    order = Order(
        located=located,
        mode=chosen or ("scratch" if stages["stage"] else "resume"),
        run=said.get("run"),
        start=stages["from"],
        only=stages["stage"],
        use=uses,
        preset=said.get("preset"),
        files=files,
        overrides=overrides,
        take_over=take_over,
        allow_change=allow_change,
    )
    from mltrain.cli.pipeline_display import QuietPipeline, TerminalPipeline

    result = run_pipeline(
        order, QuietPipeline() if as_json else TerminalPipeline(), lambda cleared: _confirmed(cleared, yes, as_json)
    )
    if as_json:
        facts = {
            "run_id": result.run_id,
            "exit_code": result.exit_code,
            "why": result.why,
            "stages": [
                {"stage": d.stage, "action": d.action, "why": d.why, "run_id": result.stages.get(d.stage, d.run_id)}
                for d in result.decisions
            ],
        }
        print(json.dumps(facts, indent=1))
    sys.exit(result.exit_code)


def resume_by_parent(run_id: str, overrides: dict[str, str], *, take_over: bool, allow_change: bool) -> int | None:
    """Continue a pipeline whose run's id was given to ``mltrain train``; return the exit code, or none if it is none."""
    from mltrain.run.opening import created_as
    from mltrain.tracking.client import TRAINING_RETRY_SECONDS, connect
    from mltrain.tracking.tags import PIPELINE_TAG, STAGE_TAG

    server = connect(retry_seconds=TRAINING_RETRY_SECONDS)
    tags = server.run(created_as(server, run_id)).data.tags
    if PIPELINE_TAG not in tags or STAGE_TAG in tags:
        return None
    from mltrain.cli.pipeline_display import TerminalPipeline
    from mltrain.pipelines.request import Order
    from mltrain.pipelines.runner import run as run_pipeline

    order = Order(
        located=_located(None, run_id),
        mode="resume",
        run=run_id,
        overrides=overrides,
        take_over=take_over,
        allow_change=allow_change,
    )
    return run_pipeline(order, TerminalPipeline(), lambda cleared: False).exit_code


def _located(word: str | None, run: str | None) -> "Located":
    from mltrain.project import PIPELINES, find_pipeline

    if word is not None:
        return find_pipeline(word)
    if run is None or run == "new":
        from importlib import metadata

        known = ", ".join(sorted(entry.name for entry in metadata.entry_points(group=PIPELINES))) or "none"
        raise UsageError(f"Which pipeline? Name it: mltrain pipeline NAME, or --run ID. Registered here: {known}.")
    from mltrain.pipelines.pipeline_run import parent_of
    from mltrain.tracking.client import connect
    from mltrain.tracking.tags import PROJECT_TAG

    return find_pipeline(parent_of(connect(), run).data.tags.get(PROJECT_TAG, ""), recorded=True)


def _uses(words: Sequence[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for word in (part for one in words for part in one.split(",") if one not in NOT_GIVEN):
        stage, equals, run_id = word.partition("=")
        if not equals or not stage or not run_id:
            raise UsageError(f"--use {word}: STAGE=RUN_ID was expected, or STAGE=none.")
        found[stage] = None if run_id in NOT_GIVEN else run_id
    return found


def _rows(
    located: "Located", said: dict[str, str], files: list[Path], overrides: dict[str, Any], uses: dict[str, str | None]
) -> tuple[dict[str, Any], list[Any]]:
    from mltrain.pipelines.pipeline_run import Plan, chosen_parent, recorded_plan
    from mltrain.pipelines.status import status
    from mltrain.run.listing import row
    from mltrain.tracking.client import connect

    server, pipeline = connect(), located.pipeline
    overrides = dict(overrides)
    parent = chosen_parent(server, pipeline, said.get("run"), overrides.pop("experiment", None))
    before = recorded_plan(server, pipeline, parent) if parent is not None else Plan()
    if said.get("stage") is not None:
        overrides = {pipeline.within(said["stage"], key): value for key, value in overrides.items()}
    configs = pipeline.configs(files=files, preset=said.get("preset"), overrides=overrides, base=before.configs)
    used = {name: run for name, run in {**before.used, **uses}.items() if run is not None}
    mode: Any = said.get("mode", "skip")
    rows = status(server, pipeline, parent, configs, Plan(used=used), mode)
    about = {"pipeline": pipeline.name, **({"run_id": None} if parent is None else row(server, parent))}
    return about, rows


def _show(seen: tuple[dict[str, Any], list[Any]], as_json: bool) -> None:
    about, rows = seen
    if as_json:
        keys = ("pipeline", "run_id", "name", "state", "started")
        print(
            json.dumps({**{key: about.get(key) for key in keys}, "stages": [row.as_json() for row in rows]}, indent=1)
        )
        return
    from mltrain.cli.tables import table
    from mltrain.pipelines.status import shown

    if about["run_id"] is None:
        print(f"Pipeline {about['pipeline']}: you have no run of it in this experiment yet.")
    else:
        print(
            f"Pipeline {about['pipeline']}: run {about['run_id']} ({about['name']}, {about['state']}), {about['started']}"
        )
    table("Stages", ("stage", "state", "epochs", "best", "run_id", "next", "why"), shown(rows))
    for row in rows:
        if row.log is not None:
            print(f"Log of {row.stage}: {row.log}")


def _asked(located: "Located") -> tuple[str | None, dict[str, str | None]]:
    """Ask on a terminal what to do; none: quit."""
    print(_QUESTION)
    answer = typer.prompt("Choice", default="q").strip().lower()[:1]
    if answer in _MENU:
        return _MENU[answer], {"from": None, "stage": None}
    if answer in ("f", "o"):
        name = typer.prompt("Stage", default=located.pipeline.stages[0].name).strip()
        located.pipeline.stage(name)
        return (
            ("resume", {"from": name, "stage": None}) if answer == "f" else ("scratch", {"from": None, "stage": name})
        )
    print("Nothing was done.")
    return None, {"from": None, "stage": None}


def _confirmed(cleared: "Sequence[Clearing]", yes: bool, as_json: bool) -> bool:
    """List what would be cleared, and ask."""
    out = sys.stderr if as_json else sys.stdout
    for one in cleared:
        made = [f"{len(one.checkpoints)} checkpoints ({one.bytes / 1e6:.1f} MB)"] if one.checkpoints else []
        made += [f"{len(one.outputs)} outputs"] if one.outputs else []
        print(
            f"would clear  {one.stage}: run {one.run_id} ({one.name}), {', '.join(made) or 'nothing in it'}", file=out
        )
        for identity, reason in one.kept.items():
            print(f"  stays      {identity.name}  {reason}", file=out)
    if yes:
        return True
    if as_json or not sys.stdin.isatty():
        raise UsageError("What is listed would be cleared. Add --yes to do it without being asked.")
    return typer.confirm("Clear these?")


def _follow(located: "Located", run: str | None, stage: str, experiment: str | None) -> None:
    from mltrain.errors import RunNotFound
    from mltrain.pipelines.pipeline_run import children, chosen_parent
    from mltrain.pipelines.tail import followed
    from mltrain.tracking.client import connect

    server, name = connect(), located.pipeline.stage(stage).name
    parent = chosen_parent(server, located.pipeline, run, experiment)
    found = children(server, parent, name) if parent is not None else []
    if not found:
        raise RunNotFound(f"The stage {name!r} has no run yet. See: mltrain pipeline {located.word} --status")
    try:
        for line in followed(server, found[0].info.run_id):
            print(line, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
