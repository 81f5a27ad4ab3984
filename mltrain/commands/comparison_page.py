"""Draws a comparison as a figure or an HTML page."""

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltrain.commands.compare import Comparison
from mltrain.errors import UsageError
from mltrain.redaction import harmless
from mltrain.store.durable import replace_file
from mltrain.tracking.client import TrackingClient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curves = Mapping[str, Sequence[Sequence[tuple[int, float]]]]
"""For each metric the points of each run, as (step, value) in the order of steps."""

FORMATS = ("png", "svg", "pdf")
MOST_DRAWN = 100
"""Largest number of runs, the best ones, whose curves a figure shows."""
_MOST_CURVES, _COLUMNS = 12, 3
_PALETTE = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9", "black")  # C7 is grey
_COLOURS = len(_PALETTE)
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; background: #fff }
table { border-collapse: collapse; margin: .5rem 0 2rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top }
th { font-weight: 600 } code { font-size: .85em } svg { max-width: 100%; height: auto }
div { overflow-x: auto }
"""


def curves_of(server: TrackingClient, comparison: Comparison) -> Curves:
    """Return the curves of at most twelve epoch metrics.

    Beyond :data:`MOST_DRAWN` runs only the best have curves; the lists of the others are empty.

    Raises:
        TrackingError: the server does not answer.
    """
    decisive = comparison.decided_by[0] if comparison.decided_by else None
    measured_at_best = [key for key in comparison.best if key in comparison.last]

    def place(key: str) -> tuple[bool, bool, int, str]:
        prefix = next((n for n, one in enumerate(("val/", "train/")) if key.startswith(one)), 9)
        return key != decisive, key not in measured_at_best, prefix, key

    keys = [key for key in comparison.last if key != "epoch" and not key.startswith("step/")]
    keys = sorted(keys, key=place)[:_MOST_CURVES]
    drawn = [comparison.runs[number]["run_id"] for number in comparison.ranked()[:MOST_DRAWN]]
    found = server.curves(drawn, keys)
    return {key: [found.get((run["run_id"], key), []) for run in comparison.runs] for key in keys}


def figure(comparison: Comparison, curves: Curves) -> "Figure":
    """Return a figure with a panel per metric.

    Of more than ten runs, the ten best are coloured and the others are grey lines behind them.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = max(1, min(_COLUMNS, len(curves)))
    rows = max(1, -(-len(curves) // columns))
    drawn = Figure(figsize=(4.6 * columns, 3.2 * rows + 0.6), layout="constrained")
    panels = drawn.subplots(rows, columns, squeeze=False).flatten()
    ranked = comparison.ranked()
    coloured = list(range(len(ranked))) if len(ranked) <= _COLOURS else ranked[:_COLOURS]
    grey = [number for number in ranked[:MOST_DRAWN] if number not in coloured]
    for panel, (key, lines) in zip(panels, curves.items(), strict=False):
        behind = [lines[number] for number in grey if lines[number]]
        if behind:
            panel.add_collection(LineCollection(behind, colors="0.8", linewidths=0.8, zorder=1, rasterized=True))
        for place, number in enumerate(coloured):
            if points := lines[number]:
                marker = "o" if len(points) == 1 else None
                panel.plot(*zip(*points, strict=True), color=_PALETTE[place], linewidth=1.4, marker=marker)
        panel.autoscale_view()
        panel.set_title(_drawable(key), fontsize=10)
        panel.set_xlabel("step", fontsize=8)
        panel.grid(alpha=0.25)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    handles = [Line2D([], [], color=colour) for colour in _PALETTE[: len(coloured)]]
    names = [_drawable(label(comparison.runs[number])) for number in coloured]
    if grey:
        handles.append(Line2D([], [], color="0.8"))
        names.append(f"{len(grey)} other runs")
    drawn.legend(handles, names, loc="outside lower center", fontsize=8, ncols=1 if len(names) <= _COLUMNS else 2)
    return drawn


def caption(comparison: Comparison) -> str:
    """Return a sentence on what the figure omits or greys."""
    count = len(comparison.runs)
    if count <= _COLOURS:
        return ""
    metric, mode = comparison.decided_by or ("", "min")
    by = f" by {metric} ({mode})" if metric in comparison.best else ", in the order given"
    if count <= MOST_DRAWN:
        return f"The first {_COLOURS} runs{by} are coloured, the others are grey."
    return f"The first {MOST_DRAWN} of {count} runs{by} are drawn: {_COLOURS} of them coloured, the others grey."


def save_figure(drawn: "Figure", file: Path) -> None:
    """Write a figure in the format of the file's suffix.

    Raises:
        UsageError: the suffix is not a known format.
        StorageError: the file cannot be written.
    """
    replace_file(file, _rendered(drawn, format_of(file)))


def format_of(file: Path) -> str:
    """Return the format of a file's suffix.

    Raises:
        UsageError: the suffix is not a known format.
    """
    ending = file.suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise UsageError(
            f"--figure {file} ends with no known format. Expected {', '.join(FORMATS)}. Try: --figure runs.png"
        )
    return ending


def page(
    comparison: Comparison, drawn: "Figure", sections: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]]
) -> str:
    """Return a self-contained HTML page of runs, curves and tables.

    Args:
        comparison: the comparison of the runs.
        drawn: the figure of their curves.
        sections: for each title a table: column names, and rows of text.
    """
    svg = _rendered(drawn, "svg").decode()
    svg = svg[svg.index("<svg") :]
    title = f"{len(comparison.runs)} runs compared"
    tables = "".join(_table(name, *content) for name, content in sections.items())
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title><style>{_STYLE}</style>'
        f"</head><body><h1>{_text(title)}</h1><h2>Curves</h2>"
        f"<p>{_text(caption(comparison))}</p>{svg}{_runs(comparison.runs)}{tables}"
        "</body></html>\n"
    )


def label(run: Mapping[str, Any]) -> str:
    """Return the label of a run in tables and legends."""
    return f"{run['name']} ({run['run_id'][:8]}, {run['state']})"


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    names = ("name", "run_id", "project", "state", "epoch", "best", "started")
    return _table("Runs", names, [[str(run[name]) if run[name] is not None else "" for name in names] for run in runs])


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return f"<h2>{_text(title)}</h2><p>None.</p>"
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<h2>{_text(title)}</h2><div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _rendered(drawn: "Figure", form: str) -> bytes:
    content = io.BytesIO()
    drawn.savefig(content, format=form, dpi=120)
    return content.getvalue()


def _text(text: str) -> str:
    return html.escape(harmless(text))


def _drawable(text: str) -> str:
    """Return text that matplotlib does not read as a formula."""
    return harmless(text).replace("$", r"\$")
