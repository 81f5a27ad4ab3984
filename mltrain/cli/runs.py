"""``mltrain runs`` and ``mltrain compare``: which runs there are, what state they are in, how they differ."""

import dataclasses
import json
from typing import Any

import typer


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("runs")(runs)
    app.command("compare")(compare)


def runs(
    experiment: str = typer.Option(None, "--experiment", help="Only runs of this experiment."),
    most: int = typer.Option(50, "--most", help="At most so many, the newest first."),
    as_json: bool = typer.Option(False, "--json", help="As JSON, for programs."),
) -> None:
    """List runs with their true state: running, finished, stopped, failed, dead (killed without a word)."""
    from mltrain.run.listing import listed
    from mltrain.tracking.client import connect

    rows = listed(connect(), experiment, most)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from mltrain.cli.tables import table

    columns = ("run_id", "name", "project", "state", "epoch", "latest", "best", "started")
    table("Runs", columns, [[_shown(row[column]) for column in columns] for row in rows])


def compare(
    run_ids: list[str] = typer.Argument(..., metavar="ID ID...", help="Two runs or more."),
    as_json: bool = typer.Option(False, "--json", help="As JSON, for programs."),
) -> None:
    """Show runs side by side: which parameters differ, what the best checkpoint of each measured, the last values."""
    from mltrain.commands.compare import compared
    from mltrain.errors import UsageError
    from mltrain.tracking.client import connect

    if len(run_ids) < 2:
        raise UsageError("One run has nothing to be compared with: give the ids of two or more. See: mltrain runs")
    comparison = compared(connect(), run_ids)
    if as_json:
        print(json.dumps(dataclasses.asdict(comparison), indent=1))
        return
    from mltrain.cli.tables import table

    names = [f"{run['name']} ({run['run_id'][:8]}, {run['state']})" for run in comparison.runs]
    sections = {
        "Parameters that differ": comparison.parameters,
        "At the best checkpoint": comparison.best,
        "Last values": comparison.last,
    }
    for title, rows in sections.items():
        table(title, ["", *names], [[key, *map(_measured, values)] for key, values in sorted(rows.items())])


def _measured(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else _shown(value)


def _shown(value: Any) -> str:
    return "" if value is None else str(value)
