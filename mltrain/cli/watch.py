"""``mltrain watch``: follows a run that another process trains."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mltrain.cli import app
from mltrain.redaction import harmless

if TYPE_CHECKING:
    from mltrain.commands.watch import Look

_SILENT_SECONDS = 30.0
_MOST_METRICS = 16


@app.command("watch")
def watch_(
    run_id: str = typer.Argument(..., metavar="ID", help="The id of the run, or its first digits."),
    every: float = typer.Option(2.0, "--every", min=0.2, help="Seconds between two looks."),
) -> None:
    """Follow a run until it ends; Ctrl+C does not stop it.

    The run may train in another terminal or on another machine. Shows a live table on a terminal; without one, prints a line
    for every epoch.
    """
    print(f"Following run {run_id} ...", flush=True)  # MLflow's import, next, takes seconds
    from mltrain.commands.watch import watch
    from mltrain.tracking.client import connect

    looks = watch(connect(retry_seconds=30.0), run_id, every)
    try:
        look = _live(looks) if sys.stdout.isatty() else _lines(looks)
    except KeyboardInterrupt:
        return
    print(f"Run {look.run_id} is {look.state}.")


def _lines(looks: "Iterator[Look]") -> "Look":
    """Print the state and every new epoch; return the last look."""
    shown: int | None = None
    for number, look in enumerate(looks):
        if number == 0:
            begun = "" if look.epoch is not None else ", no epoch done yet"
            print(f"{harmless(look.name)} ({look.run_id}) is {look.state}{begun}.", flush=True)
        if look.epoch is not None and look.epoch != shown:
            shown = look.epoch
            print(f"epoch {_epochs(look)}  {_figures(look)}", flush=True)
    return look


def _figures(look: "Look") -> str:
    return harmless("  ".join(f"{key} {look.metrics[key]:.4g}" for key in _keys(look)))


def _live(looks: "Iterator[Look]") -> "Look":
    """Show a live table; return the last look."""
    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        for look in looks:
            live.update(rendered(look), refresh=True)
    return look


def rendered(look: "Look") -> RenderableType:
    """Return the view of a run at one moment."""
    facts = Table.grid(padding=(0, 2))
    silent = f", no heartbeat for {look.silent:.0f} s" if look.is_live and look.silent > _SILENT_SECONDS else ""
    rows = {
        "run": f"{look.name} ({look.run_id})",
        "state": f"{look.state}{silent}",
        "epoch": _epochs(look),
        "newest": look.latest or "no checkpoint yet",
        "best": look.best or "",
    }
    for name, value in rows.items():
        facts.add_row(Text(name, style="bold"), Text(harmless(value)))
    metrics = Table.grid(padding=(0, 2))
    for key in _keys(look)[:_MOST_METRICS]:
        style = "bold" if key == look.best_metric else ""
        metrics.add_row(Text(harmless(key), style=style), Text(f"{look.metrics[key]:.5g}", style=style))
    bar = ProgressBar(total=look.epochs or 1, completed=look.epoch or 0, width=60)
    return Group(facts, *((bar,) if look.epochs else ()), Text(""), metrics)


def _keys(look: "Look") -> list[str]:
    """Return the metrics, the deciding one first."""

    def place(key: str) -> tuple[bool, int, str]:
        order = ("val/", "train/", "learning_rate", "step/")
        return key != look.best_metric, next((n for n, one in enumerate(order) if key.startswith(one)), 9), key

    return sorted((key for key in look.metrics if key != "epoch"), key=place)


def _epochs(look: "Look") -> str:
    return f"{look.epoch or 0}{f' of {look.epochs}' if look.epochs else ''}"
