"""``mltrain evaluate`` and ``mltrain pull``."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import typer

from mltrain.cli import app
from mltrain.cli.arguments import JSON, parse
from mltrain.cli.progress import arrived_of, progress


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def evaluate(
    run_id: str = typer.Argument(..., metavar="ID", help="The id of the run, or its first digits."),
    arguments: list[str] = typer.Argument(
        None, metavar="[key=value ...]", help="Configuration keys, such as other data.", show_default=False
    ),
    checkpoint: str = typer.Option("best", "--checkpoint", help="best, latest, epoch:N, step:N or a name."),
    to: Path = typer.Option(None, "--to", help="A folder for the project's report: tables and pictures."),
    as_json: bool = JSON,
) -> None:
    """Evaluate a checkpoint on the run's or other data."""
    from mltrain.commands.evaluate import measured, rebuilt

    project, overrides = parse(arguments or [])
    with progress("looking", in_bytes=True) as advance:
        found = rebuilt(run_id, checkpoint, overrides, project, to, arrived_of(advance))
    with progress("evaluating"):
        done = measured(found, to)
    if as_json:
        report = str(done.report) if done.report is not None else None
        facts = {
            "run_id": done.run_id,
            "checkpoint": done.manifest.name,
            "metrics": dict(done.metrics),
            "report": report,
        }
        print(json.dumps(facts, indent=1))
        return
    print(f"{done.manifest.title} ({done.manifest.name}) of run {done.run_id}")
    for name, value in done.metrics.items():
        print(f"  {name:<24} {value:.5g}")
    if done.report is not None:
        print(f"Report: {done.report}")


@app.command()
def pull(
    run_id: str = typer.Argument(None, metavar="ID", help="The id of the run; or give --experiment."),
    to: Path = typer.Option(..., "--to", help="The folder to download to."),
    experiment: str = typer.Option(None, "--experiment", help="Take the best run of this experiment."),
    metric: str = typer.Option(None, "--metric", help="Metric that ranks the runs. Default: the runs' own."),
    mode: str = typer.Option(None, "--mode", help="min or max."),
    checkpoint: str = typer.Option("best", "--checkpoint", help="best, latest, epoch:N, step:N or a name."),
    register: str = typer.Option(
        None,
        "--register",
        metavar="NAME",
        help="Also register it as a version of this model, for MLflow's load_model.",
    ),
    alias: str = typer.Option(None, "--alias", help="An alias of that version, such as champion."),
    as_json: bool = JSON,
) -> None:
    """Download a verified model with its configuration and history."""
    from mltrain.commands.pull import choose, download, refuse_folder
    from mltrain.errors import UsageError
    from mltrain.tracking.mlflow_model import refuse_name

    if mode not in (None, "min", "max"):
        raise UsageError(f"--mode {mode} is unknown. Expected min or max.")
    if alias is not None and register is None:
        raise UsageError("--alias names a version of a registered model. Expected --register NAME with it.")
    if register is not None:
        refuse_name(register, alias)
    refuse_folder(to)
    direction: Any = mode
    made = None
    choice = choose(run_id, experiment, metric, direction, checkpoint)
    if register is not None:
        from mltrain.commands.logged_model import registered, registrable

        with progress("building the model"):
            rebuilt = registrable(choice.run_id, checkpoint)
        choice = dataclasses.replace(choice, candidates=[rebuilt.manifest])
    with progress("looking", in_bytes=True) as received:
        pulled = download(choice, to, received)
    if register is not None:
        with progress("exporting the model"):
            made = registered(rebuilt, register, alias)
    if as_json:
        files = sorted(path.name for path in to.iterdir())
        facts = {"run_id": pulled.run_id, "checkpoint": pulled.manifest.name, "files": files}
        model = {} if made is None else {"model": dataclasses.asdict(made)}
        print(json.dumps(facts | model, indent=1))
        return
    print(f"{pulled.manifest.title} ({pulled.manifest.name}) of run {pulled.run_id} is in {to}, verified.")
    if made is not None:
        place = f"models:/{made.name}@{alias}" if alias is not None else f"models:/{made.name}/{made.version}"
        print(f"It is version {made.version} of the model {made.name}: mlflow.pyfunc.load_model({place!r})")
