"""Curves of runs in one figure and on one page that needs nothing else."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mltrain.commands.compare import Comparison
from mltrain.commands.comparison_page import curves_of, figure, format_of, page, save_figure
from mltrain.errors import UsageError

CURVES = {"val/loss": [(1, 0.5), (2, 0.25)], "train/loss": [(2, 0.3), (1, 0.6)], "epoch": [(1, 1.0)], "step/loss": []}


class Server:
    """Knows the curves of two runs; the second one lacks ``train/loss``."""

    def history(self, run_id: str, key: str) -> list[Any]:
        points = CURVES[key] if run_id == "a" * 32 or key != "train/loss" else []
        return [SimpleNamespace(step=step, value=value) for step, value in points]


def compared(name: str = "wear lr=1") -> Comparison:
    facts = {"project": "wear", "state": "finished", "epoch": 2, "best": None, "started": "2026-01-01T00:00:00+00:00"}
    runs = [{"run_id": letter * 32, "name": name, **facts} for letter in "ab"]
    last = {key: [1.0, 2.0] for key in CURVES}
    return Comparison(runs, {}, [{}, {}], {"val/loss": [0.25, 0.25]}, last)


def test_curves_are_those_of_epochs_in_the_order_of_steps_the_deciding_one_first() -> None:
    curves = curves_of(Server(), compared())  # type: ignore[arg-type]
    assert list(curves) == ["val/loss", "train/loss"]
    assert curves["train/loss"] == [[(1, 0.6), (2, 0.3)], []]


def test_a_figure_has_a_panel_for_each_metric_and_a_line_for_each_run(tmp_path: Path) -> None:
    comparison = compared("a $x_1$ <b>")
    drawn = figure(comparison, curves_of(Server(), comparison))  # type: ignore[arg-type]
    assert [len(panel.lines) for panel in drawn.axes if panel.get_visible()] == [2, 1]
    for ending, begins in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        save_figure(drawn, tmp_path / f"runs.{ending}")
        assert (tmp_path / f"runs.{ending}").read_bytes().startswith(begins)
    assert len(figure(comparison, {}).axes) == 1, "runs without a curve are no error"


def test_the_page_loads_nothing_and_takes_names_for_text() -> None:
    comparison = compared("<script>alert(1)</script> & co")
    drawn = figure(comparison, curves_of(Server(), comparison))  # type: ignore[arg-type]
    written = page(comparison, drawn, {"Last": (["", "one"], [["val/loss", "<img src=x>"]])})
    assert "<script" not in written
    assert "<img" not in written
    assert "&lt;img src=x&gt;" in written
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", written)
    assert not re.findall(r"url\((?!#)", written)


@pytest.mark.parametrize("name", ["runs", "runs.jpeg", "runs.exe"])
def test_a_figure_of_no_known_format_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="png, svg, pdf"):
        format_of(Path(name))
