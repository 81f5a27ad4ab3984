"""Pictures show the numbers of the result, for all windows."""

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from projects.tool_wear import figures
from projects.tool_wear.results import Results
from projects.tool_wear.windows import UNLABELLED, Windows


@pytest.fixture
def results(small: Windows) -> Results:
    """Two tools; every window has the most likely class right except every tenth."""
    windows = small.of(["c1", "c6"])
    taken = windows.labels.copy()
    taken[::10] = (taken[::10] + 1) % 3
    return Results(windows, np.full((len(windows), 3), 0.1) + 0.7 * np.eye(3)[taken])


def drawn(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def test_the_confusion_matrix_shows_counts_and_shares_of_each_row(results: Results) -> None:
    figure = figures.confusion(results, "title")
    counts, shares = ([text.get_text() for text in axes.texts] for axes in figure.axes)
    assert [int(text) for text in counts] == results.confusion.ravel().tolist()
    expected = results.confusion / results.confusion.sum(axis=1, keepdims=True)
    assert shares == [f"{value:.2f}" for value in expected.ravel()]
    assert drawn(figure)


def test_wear_curves_have_a_panel_for_each_tool_and_ring_what_is_wrong(results: Results) -> None:
    figure = figures.wear_curves(results)
    assert len(figure.axes) == 2
    wrong = [_points(axes.collections[-1]) for axes in figure.axes]
    assert sum(wrong) == (results.predicted != results.windows.labels).sum()
    assert "6 of 60 windows wrong" in figure.axes[0].get_title()
    assert drawn(figure)


def _points(collection: object) -> int:
    assert isinstance(collection, PathCollection)
    return len(np.asarray(collection.get_offsets()))


def test_each_window_is_drawn_once_in_the_colour_of_its_predicted_class(results: Results) -> None:
    axes = figures.wear_curves(results).axes[0]
    first = results.windows.tools == "c1"
    by_class = [_points(collection) for collection in axes.collections[:3]]
    assert by_class == np.bincount(results.predicted[first], minlength=3).tolist()
    palette = figures.colours(3)
    for collection, colour in zip(axes.collections[:3], palette, strict=True):
        if _points(collection):
            np.testing.assert_allclose(np.asarray(collection.get_facecolor())[0], colour)


def test_traces_show_one_window_of_each_class_with_all_channels(results: Results) -> None:
    figure = figures.traces(results)
    assert len(figure.axes) == 3 * 7
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == [
        *(f"F{axis} [N]" for axis in "xyz"),
        *(f"V{axis} [g]" for axis in "xyz"),
        "AE [V]",
    ]
    lines = [line for axes in figure.axes for line in axes.lines]
    assert all(len(np.asarray(line.get_xdata())) == 32 for line in lines)
    assert float(np.asarray(lines[0].get_xdata())[1]) == pytest.approx(1000.0 / 5000.0)
    assert drawn(figure)


def test_a_perfect_ranking_has_an_area_of_one(results: Results) -> None:
    perfect = Results(
        results.windows, np.full((len(results.windows), 3), 0.1) + 0.7 * np.eye(3)[results.windows.labels]
    )
    legend = figures.roc(perfect).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()][1:] == [
        f"{name}: area 1.000" for name in results.windows.classes
    ]


@pytest.mark.parametrize("label", [0, UNLABELLED])
def test_windows_of_one_class_or_none_can_be_drawn(results: Results, label: int) -> None:
    windows = replace(
        results.windows,
        labels=np.full(len(results.windows), label),
        wear=np.full(len(results.windows), np.nan, dtype=np.float32),
        rate=None,
    )
    alike = Results(windows, results.probabilities)
    assert drawn(figures.wear_curves(alike))
    assert drawn(figures.traces(alike))
    assert drawn(figures.roc(alike))
    assert drawn(figures.confusion(alike))
