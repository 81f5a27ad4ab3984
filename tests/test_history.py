"""The per-epoch table of a training."""

import io
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.history import CsvLog, History, learning_curves

names = st.sampled_from(["train/loss", "val/loss", "val/iou", "odd, name", 'with "quotes"', "loss_total"])
numbers = st.floats() | st.integers(-5, 5)
rows = st.lists(st.dictionaries(names, numbers, max_size=4), max_size=6)


def history_of(measured: list[dict[str, Any]]) -> History:
    history = History()
    for epoch, row in enumerate(measured, 1):
        history.add({"epoch": epoch, "step": 10 * epoch, **row})
    return history


def table(content: bytes) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(content))


@settings(max_examples=60, deadline=None)
@given(rows)
def test_pandas_reads_what_was_measured(measured: list[dict[str, float]]) -> None:
    history = history_of(measured)
    if not history.rows:
        return
    read = table(history.to_csv())
    assert list(read.columns) == history.columns
    for number, row in enumerate(history.rows):
        for name in history.columns:
            value, expected = float(read[name][number]), float(row.get(name, math.nan))
            assert value == pytest.approx(expected, rel=1e-12, abs=0, nan_ok=True)


def test_the_first_columns_are_always_the_same() -> None:
    history = history_of([{"val/loss": 1, "learning_rate": 0.1, "loss_total": 2, "train/loss": 2}])
    assert history.columns == ["epoch", "step", "loss_total", "learning_rate", "train/loss", "val/loss"]


def test_the_row_of_an_epoch_that_is_done_again_replaces_the_old_one() -> None:
    history = history_of([{"a": 1}, {"a": 2}])
    history.add({"epoch": 2, "step": 20, "a": 3})
    assert [(row["epoch"], row["a"]) for row in history.rows] == [(1, 1), (2, 3)]


@given(rows)
def test_a_history_survives_a_resume(measured: list[dict[str, float]]) -> None:
    history, other = history_of(measured), History()
    other.load_state_dict(history.state_dict())
    assert other.to_csv() == history.to_csv()


def test_what_was_saved_does_not_change_with_the_training() -> None:
    history = history_of([{"a": 1}])
    saved = history.state_dict()
    history.rows[0]["a"] = 2
    history.add({"epoch": 2, "step": 20})
    assert saved == {"rows": [{"epoch": 1, "step": 10, "a": 1}]}


@settings(max_examples=60, deadline=None)
@given(rows)
def test_the_log_is_the_table_after_every_epoch(measured: list[dict[str, float]]) -> None:
    import tempfile

    history = History()
    with tempfile.TemporaryDirectory() as folder:
        log = CsvLog(Path(folder) / "new" / "log.csv", history)
        for epoch, row in enumerate(measured, 1):
            history.add({"epoch": epoch, "step": epoch, **row})
            log.update()
            assert log.path.read_bytes() == history.to_csv()


def test_the_log_grows_by_a_line_an_epoch_so_that_it_can_be_followed(tmp_path: Path) -> None:
    history = History()
    log = CsvLog(tmp_path / "log.csv", history)
    history.add({"epoch": 1, "step": 1, "a": 1})
    log.update()
    with log.path.open("rb") as follower:
        follower.read()
        for epoch in (2, 3):
            history.add({"epoch": epoch, "step": epoch, "a": epoch})
            log.update()
            assert follower.read() == b"%d,%d,%d\n" % (epoch, epoch, epoch)


def test_a_new_column_and_a_history_that_was_put_back_write_the_log_anew(tmp_path: Path) -> None:
    history = History()
    log = CsvLog(tmp_path / "log.csv", history)
    for epoch in (1, 2, 3):
        history.add({"epoch": epoch, "step": epoch, "a": epoch, **({"b": 1} if epoch == 2 else {})})
        log.update()
        assert log.path.read_bytes() == history.to_csv()
    history.load_state_dict({"rows": history.rows[:1]})
    for epoch in (2, 3, 4):
        history.add({"epoch": epoch, "step": epoch, "a": -epoch, "b": 0})
        log.update()
        assert log.path.read_bytes() == history.to_csv()


def test_a_resumed_log_begins_with_all_that_was_before(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("what another process left")
    history = history_of([{"a": 1}, {"a": 2}])
    CsvLog(tmp_path / "log.csv", history).update()
    assert (tmp_path / "log.csv").read_bytes() == history.to_csv()


def test_learning_curves_have_a_panel_a_metric_with_train_and_validation_together() -> None:
    measured = [{"train/loss": 1 / n, "val/loss": 2 / n, "val/iou": n / 10, "learning_rate": 0.1} for n in range(1, 4)]
    figure = learning_curves(history_of(measured))
    panels = {axes.get_title(): [line.get_label() for line in axes.get_lines()] for axes in figure.axes}
    assert panels == {
        "loss": ["train/loss", "val/loss"],
        "iou": ["val/iou"],
        "learning rate": ["learning_rate"],
    }
    first = figure.axes[0].get_lines()[0]
    assert list(first.get_xdata()) == [1, 2, 3]
    assert list(first.get_ydata()) == pytest.approx([1, 1 / 2, 1 / 3])


@pytest.mark.parametrize("measured", [[], [{}], [{"val/loss": math.nan}], [{"a": 1}, {"b": 2}, {"a": math.inf}]])
def test_learning_curves_can_be_drawn_of_anything(measured: list[dict[str, float]], tmp_path: Path) -> None:
    learning_curves(history_of(measured)).savefig(tmp_path / "curves.png", dpi=20)
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_a_name_with_the_signs_of_a_formula_can_be_drawn() -> None:
    history = history_of([{"val/cost $a_$": 1.0, "train/$": 2.0}])
    learning_curves(history).savefig(io.BytesIO(), format="png")


def test_learning_curves_of_many_metrics_show_some_of_them() -> None:
    measured = {f"val/class_{number}": 0.5 for number in range(1000)} | {"train/loss": 1.0, "val/loss": 1.0}
    titles = [axes.get_title() for axes in learning_curves(history_of([measured])).axes]
    assert len(titles) == 49
    assert titles[0] == "loss"
