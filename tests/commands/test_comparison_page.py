"""Curves of runs, as one figure and one self-contained page."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mltrain.commands.compare import Comparison
from mltrain.commands.comparison_page import MOST_DRAWN, caption, curves_of, figure, format_of, page, save_figure
from mltrain.errors import UsageError

CURVES = {"val/loss": [(1, 0.5), (2, 0.25)], "train/loss": [(2, 0.3), (1, 0.6)], "epoch": [(1, 1.0)], "step/loss": []}


class Server:
    """Knows the curves of runs; the second one lacks ``train/loss``."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def curves(self, run_ids: Sequence[str], keys: Sequence[str]) -> Any:
        self.asked.append([*run_ids])
        known = {(run_id, key): sorted(CURVES[key]) for run_id in run_ids for key in keys}
        return {one: points for one, points in known.items() if one != ("b" * 32, "train/loss")}


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


def many(count: int, mode: str = "min") -> Comparison:
    facts = {"project": "wear", "state": "finished", "epoch": 2, "best": None, "started": "2026-01-01T00:00:00+00:00"}
    runs = [{"run_id": f"{number:032x}", "name": f"run {number}", **facts} for number in range(count)]
    values = [float(count - number) for number in range(count)]
    return Comparison(runs, {}, [{}] * count, {"val/loss": values}, {"val/loss": values}, ("val/loss", mode))


@pytest.mark.parametrize(("mode", "best"), [("min", range(29, 19, -1)), ("max", range(10))])
def test_of_thirty_runs_the_ten_best_have_colours_and_names(mode: str, best: Sequence[int]) -> None:
    comparison = many(30, mode)
    curves = curves_of(Server(), comparison)  # type: ignore[arg-type]
    drawn = figure(comparison, curves)
    (panel,) = (panel for panel in drawn.axes if panel.get_visible())
    assert (len(panel.lines), len(panel.collections[0].get_segments())) == (10, 20)
    names = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert [int(name.split()[1]) for name in names[:10]] == list(best)
    assert names[10:] == ["20 other runs"]
    assert "grey" in caption(comparison)
    assert not caption(compared())


def test_a_figure_asks_for_the_curves_of_a_hundred_runs_at_most_and_says_so() -> None:
    server, comparison = Server(), many(MOST_DRAWN + 20)
    curves = curves_of(server, comparison)  # type: ignore[arg-type]
    assert [len(ids) for ids in server.asked] == [MOST_DRAWN]
    assert [bool(points) for points in curves["val/loss"]] == [False] * 20 + [True] * MOST_DRAWN
    assert f"The first {MOST_DRAWN} of {MOST_DRAWN + 20} runs by val/loss (min)" in caption(comparison)
    written = page(comparison, figure(comparison, curves), {})
    assert caption(comparison) in written


@pytest.mark.parametrize("name", ["runs", "runs.jpeg", "runs.exe"])
def test_a_figure_of_no_known_format_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="png, svg, pdf"):
        format_of(Path(name))
