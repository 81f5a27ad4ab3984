"""``mltrain runs`` and ``mltrain compare``: list and compare runs."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from mltrain.cli import app
from mltrain.cli.arguments import JSON

_SIDE_BY_SIDE = 4
"""Up to so many runs are compared in columns, more of them in rows."""


@app.command()
def runs(
    experiment: str = typer.Option(None, "--experiment", help="Only runs of this experiment."),
    most: int = typer.Option(
        50, "--most", min=1, help="Largest number of runs, newest first, or best first with --sort."
    ),
    sort: str = typer.Option(None, "--sort", metavar="METRIC", help="Sort by this metric, the best run first."),
    mode: str = typer.Option(None, "--mode", help="min or max: which is better. Default: the runs' own."),
    where: list[str] = typer.Option(
        None,
        "--where",
        metavar="CONDITION",
        help="Only runs that meet this condition, such as 'val/f1 > 0.8'. May be repeated.",
    ),
    as_json: bool = JSON,
) -> None:
    """List runs and the state of each.

    A run is running, finished, stopped, failed or dead (killed). Its metrics are those of its best checkpoint.
    """
    from mltrain.run.listing import Selection, listed
    from mltrain.tracking.client import connect_to_read

    rows = listed(connect_to_read(), experiment, Selection(most, tuple(where or ()), sort, mode))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from mltrain.cli.tables import fits, shortest, table_that_fits

    columns: tuple[str, ...] = (
        "run_id",
        "state",
        "name",
        "best_value",
        "epoch",
        "started",
        "latest",
        "best",
        "project",
    )
    if sort is not None:
        columns = (*columns[:3], sort, *columns[3:])
    heads = [{"run_id": "run id", "best_value": "best value"}.get(column, column) for column in columns]
    cells = [[_cell(row, column) for column in columns] for row in rows]
    if not fits([heads, *cells]):
        cells = [
            [identity, *others] for identity, (_, *others) in zip(shortest([c[0] for c in cells]), cells, strict=True)
        ]
    table_that_fits("Runs", heads, cells, rest="All columns: --json, or into a file.")


@app.command()
def compare(
    run_ids: list[str] = typer.Argument(..., metavar="ID ID...", help="The ids of two or more runs."),
    page: Path = typer.Option(None, "--html", metavar="FILE", help="Also write an HTML page with tables and curves."),
    figure: Path = typer.Option(
        None, "--figure", metavar="FILE", help="Also draw the curves to a .png, .svg or .pdf file."
    ),
    as_json: bool = JSON,
) -> None:
    """Compare parameters, metrics and curves of runs.

    System metrics (system/…) are left out.
    """
    from mltrain.commands.compare import compared
    from mltrain.commands.comparison_page import caption, format_of
    from mltrain.errors import UsageError
    from mltrain.store.folders import refuse_unwritable
    from mltrain.tracking.client import connect_to_read

    if len(run_ids) < 2:
        raise UsageError("One run cannot be compared. Expected the ids of two or more. Try: mltrain runs")
    if figure is not None:
        format_of(figure)
    for file in (page, figure):
        if file is not None:
            refuse_unwritable(file.parent, "Choose another file.")
    server = connect_to_read()
    comparison = compared(server, run_ids)
    tables = _sections(comparison)
    if page is not None or figure is not None:
        _draw(server, comparison, tables, page, figure)
    if as_json:
        print(json.dumps(dataclasses.asdict(comparison), indent=1))
        return
    from mltrain.cli.tables import table, table_that_fits

    if len(comparison.runs) > _SIDE_BY_SIDE:
        names = ("run_id", "name", "state", "epoch")
        table("Runs", ["run id", *names[1:]], [[_shown(run[name]) for name in names] for run in comparison.runs])
        for title, content in tables.items():
            table_that_fits(title, *content, rest="All columns: --html FILE, --json, or into a file.")
    else:
        for title, content in tables.items():
            table(title, *content)
    for what, file in (("page", page), ("figure", figure)):
        if file is not None:
            print(f"The {what} is {file}")
    if figure is not None and (text := caption(comparison)):
        print(text)


def _sections(comparison: Any) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return the tables, with runs as columns or as rows."""
    from mltrain.commands.comparison_page import label

    def history(key: str, values: list[Any]) -> list[str]:
        """Return a parameter in each run, with values before resumes."""
        changes = [changed.get(key) for changed in comparison.changed]
        return [" → ".join(one) if one else _measured(value) for one, value in zip(changes, values, strict=True)]

    sections = {
        "Parameters that differ": {key: history(key, values) for key, values in comparison.parameters.items()},
        "At the best checkpoint": {key: [*map(_measured, values)] for key, values in comparison.best.items()},
        "Last values": {key: [*map(_measured, values)] for key, values in comparison.last.items()},
    }
    decisive = comparison.decided_by[0] if comparison.decided_by else None
    tables = {}
    for title, found in sections.items():
        rows = [[key, *found[key]] for key in sorted(found, key=lambda key: (key != decisive, key))]
        head = ["", *map(label, comparison.runs)]
        if rows and len(comparison.runs) > _SIDE_BY_SIDE:
            columns = [["run", *(run["run_id"][:8] for run in comparison.runs)], *rows]
            head, *rows = ([*one] for one in zip(*columns, strict=True))
        tables[title] = (head, rows)
    return tables


def _draw(server: Any, comparison: Any, tables: Mapping[str, Any], page: Path | None, figure: Path | None) -> None:
    """Write the curves to a page, a figure, or both."""
    from mltrain.commands import comparison_page
    from mltrain.store.durable import replace_file

    drawn = comparison_page.figure(comparison, comparison_page.curves_of(server, comparison))
    if figure is not None:
        comparison_page.save_figure(drawn, figure)
    if page is not None:
        replace_file(page, comparison_page.page(comparison, drawn, tables).encode())


def _cell(row: Mapping[str, Any], column: str) -> str:
    if column == "best_value" and row[column] is not None:
        return f"{row['best_metric']} {row[column]:.5g}"
    return _measured(row[column] if column in row else row["metrics"].get(column))


def _measured(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else _shown(value)


def _shown(value: Any) -> str:
    return "" if value is None else str(value)
