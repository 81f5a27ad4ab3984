"""``mltrain runs``: which runs there are, and what state they are in."""

import json
from typing import Any

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("runs")(runs)


def runs(
    experiment: str = typer.Option(None, "--experiment", help="Only runs of this experiment."),
    most: int = typer.Option(50, "--most", help="At most so many, the newest first."),
    as_json: bool = typer.Option(False, "--json", help="As JSON, for programs."),
) -> None:
    """List runs with their true state: running, finished, stopped, failed, dead (killed without a word)."""
    from mltrain.tracking.overview import listed
    from mltrain.tracking.server import connect

    rows = listed(connect(), experiment, most)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from mltrain.cli.tables import table

    columns = ("run_id", "name", "project", "state", "epoch", "latest", "best", "started")
    table("Runs", columns, [[_shown(row[column]) for column in columns] for row in rows])


def _shown(value: Any) -> str:
    return "" if value is None else str(value)
