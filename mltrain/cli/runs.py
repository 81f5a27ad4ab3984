"""``mltrain runs`` and ``mltrain compare``: the states and the differences of runs."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import typer


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("runs")(runs)
    app.command("compare")(compare)


def runs(
    experiment: str = typer.Option(None, "--experiment", help="Only runs of this experiment."),
    most: int = typer.Option(50, "--most", help="Maximal number of runs, the newest first, or the best by --sort."),
    sort: str = typer.Option(
        None, "--sort", metavar="METRIC", help="The run with the best value of this metric first."
    ),
    mode: str = typer.Option(None, "--mode", help="min or max: which is better. Default: what the runs declare."),
    where: list[str] = typer.Option(
        None, "--where", metavar="CONDITION", help="Only runs that meet it, such as 'val/f1 > 0.8'. May be repeated."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """List runs with their true state: running, finished, stopped, failed or dead (killed).

    Metrics are those of each run's best checkpoint.
    """
    from mltrain.run.listing import Selection, listed
    from mltrain.tracking.client import connect_to_read

    rows = listed(connect_to_read(), experiment, Selection(most, tuple(where or ()), sort, mode))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from mltrain.cli.tables import table

    columns: tuple[str, ...] = (
        "run_id",
        "name",
        "project",
        "state",
        "epoch",
        "best_value",
        "best",
        "latest",
        "started",
    )
    if sort is not None:
        columns = (*columns[:5], sort, *columns[5:])
    table("Runs", columns, [[_cell(row, column) for column in columns] for row in rows])


def compare(
    run_ids: list[str] = typer.Argument(..., metavar="ID ID...", help="The ids of two runs or more."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show runs side by side: differing parameters, metrics of the best checkpoints, last values."""
    from mltrain.commands.compare import compared
    from mltrain.errors import UsageError
    from mltrain.tracking.client import connect

    if len(run_ids) < 2:
        raise UsageError("One run cannot be compared. Expected the ids of two or more. Try: mltrain runs")
    comparison = compared(connect(), run_ids)
    if as_json:
        print(json.dumps(dataclasses.asdict(comparison), indent=1))
        return
    from mltrain.cli.tables import table

    names = [f"{run['name']} ({run['run_id'][:8]}, {run['state']})" for run in comparison.runs]

    def told(key: str, values: list[Any]) -> list[str]:
        """Return a parameter in each run; one that a resume changed with all its values."""
        changes = [changed.get(key) for changed in comparison.changed]
        return [" → ".join(one) if one else _measured(value) for one, value in zip(changes, values, strict=True)]

    differing = {key: told(key, values) for key, values in comparison.parameters.items()}
    sections: dict[str, Mapping[str, list[Any]]] = {
        "Parameters that differ": differing,
        "At the best checkpoint": comparison.best,
        "Last values": comparison.last,
    }
    for title, rows in sections.items():
        table(title, ["", *names], [[key, *map(_measured, values)] for key, values in sorted(rows.items())])


def _cell(row: Mapping[str, Any], column: str) -> str:
    if column == "best_value" and row[column] is not None:
        return f"{row['best_metric']} {row[column]:.5g}"
    return _measured(row[column] if column in row else row["metrics"].get(column))


def _measured(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else _shown(value)


def _shown(value: Any) -> str:
    return "" if value is None else str(value)
