"""The per-epoch table of a training: checkpoint part, growing CSV file, learning curves."""

import csv
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

FIRST_COLUMNS = ("epoch", "step", "loss_total", "learning_rate")
_MOST_PANELS = 48
"""A figure of a thousand metrics takes minutes, and nobody reads it."""
Row = dict[str, float | int]


class History:
    """One row of measurements per epoch; a stateful part."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, row: Mapping[str, float | int]) -> None:
        """Add or replace the row of an epoch."""
        self.rows = [known for known in self.rows if known["epoch"] != row["epoch"]] + [dict(row)]

    def to_csv(self) -> bytes:
        """Return all rows as CSV: the first columns, then losses and metrics by name."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue().encode()

    @property
    def columns(self) -> list[str]:
        """The names of all columns."""
        named = {name for row in self.rows for name in row}
        return [name for name in FIRST_COLUMNS if name in named] + sorted(named - set(FIRST_COLUMNS))

    def state_dict(self) -> dict[str, Any]:
        """Return the rows."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the rows."""
        self.rows = [dict(row) for row in state_dict["rows"]]


class CsvLog:
    """A CSV file with a line per epoch, for ``tail -f``."""

    def __init__(self, path: Path, history: History) -> None:
        self.path = path
        self._history = history
        self._columns: list[str] = []
        self._lines = 0

    def update(self) -> None:
        """Append the newest row, or rewrite a changed history.

        If the disk refuses, the training continues: this logs a warning, and the next call rewrites the file.
        """
        try:
            self._update()
        except OSError as error:
            self._lines = -1
            log.warning("%s could not be written: %s. mltrain retries after the next epoch.", self.path, error.strerror)

    def _update(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        in_order = self._columns == self._history.columns and self._lines + 1 == len(self._history.rows)
        self._columns, self._lines = self._history.columns, len(self._history.rows)
        if not in_order:
            self.path.write_bytes(self._history.to_csv())
            return
        last = self._history.to_csv().rstrip(b"\n").rpartition(b"\n")[2]
        with self.path.open("ab") as file:
            file.write(last + b"\n")
            file.flush()


def learning_curves(history: History) -> Any:
    """Return a matplotlib figure with one panel per metric.

    Of many metrics it shows 48, first those of both training and validation.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = [name for name in history.columns if name not in FIRST_COLUMNS and name != "seconds"]
    panels: dict[str, list[str]] = {}
    for name in names:
        panels.setdefault(name.split("/", 1)[-1], []).append(name)
    if len(panels) > _MOST_PANELS:
        panels = dict(sorted(panels.items(), key=lambda panel: -len(panel[1]))[:_MOST_PANELS])
    panels["learning rate"] = ["learning_rate"]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * lines), layout="constrained")
    for axes, (title, members) in zip(
        figure.subplots(lines, columns, squeeze=False).flat, panels.items(), strict=False
    ):
        for member in members:
            points = [(row["epoch"], row[member]) for row in history.rows if member in row]
            if points:
                marker = "o" if len(points) < 30 else ""
                axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, label=member.replace("$", r"\$"))
        axes.set_title(title.replace("$", r"\$"))  # else a formula
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(members) > 1:
            axes.legend(fontsize="small")
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    return figure
