"""Scores equal those computed by hand; tables describe the windows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from projects.tool_wear.results import Results, comparison
from projects.tool_wear.windows import UNLABELLED, Windows

TRUTH = [0, 0, 0, 0, 1, 1, 2, 2]
TAKEN_FOR = [0, 0, 0, 1, 1, 2, 2, 2]


@pytest.fixture
def results(small: Windows) -> Results:
    """Eight windows with three classes, two of them wrong; the class taken has probability 0.8."""
    windows = small.where(np.arange(len(small)) < 8)
    probabilities = np.full((8, 3), 0.1)
    probabilities[np.arange(8), TAKEN_FOR] = 0.8
    return Results(replace(windows, labels=np.array(TRUTH)), probabilities)


def test_confusion_counts_true_classes_in_rows(results: Results) -> None:
    assert results.confusion.tolist() == [[3, 1, 0], [0, 1, 1], [0, 0, 2]]


def test_scores_are_those_worked_out_by_hand(results: Results) -> None:
    scores = results.scores()
    assert scores["accuracy"] == pytest.approx(6 / 8)
    assert scores["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert scores["f1"] == pytest.approx((6 / 7 + 1 / 2 + 4 / 5) / 3)
    assert scores["log_loss"] == pytest.approx(-(6 * np.log(0.8) + 2 * np.log(0.1)) / 8)


def test_a_class_that_no_window_has_leaves_the_scores_finite(results: Results) -> None:
    without = Results(replace(results.windows, labels=np.array([0, 0, 0, 0, 0, 0, 2, 2])), results.probabilities)
    assert all(np.isfinite(value) for value in without.scores().values())
    assert without.per_class()["windows"].tolist() == [6, 0, 2]


def test_the_table_a_class_has_precision_recall_and_f1(results: Results) -> None:
    table = results.per_class().set_index("class")
    assert table.loc["initial", "precision"] == pytest.approx(1.0)
    assert table.loc["steady", "recall"] == pytest.approx(0.5)
    assert table.loc["severe", "precision"] == pytest.approx(2 / 3)
    assert table["windows"].tolist() == [4, 2, 2]


def test_written_tables_are_read_back_with_the_same_content(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path / "new")
    predictions = pd.read_csv(tmp_path / "new" / "predictions.csv")
    assert predictions["tool"].tolist() == ["c1"] * 8
    assert predictions["cut"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    names = np.array(results.windows.classes)
    assert predictions["class"].tolist() == names[TRUTH].tolist()
    assert predictions["predicted"].tolist() == names[TAKEN_FOR].tolist()
    columns = [f"p({name})" for name in names]
    np.testing.assert_allclose(predictions[columns].to_numpy(), results.probabilities, rtol=1e-5)
    confusion = pd.read_csv(tmp_path / "new" / "confusion.csv", index_col="true")
    assert confusion.to_numpy().tolist() == results.confusion.tolist()
    assert confusion.index.tolist() == list(names)


def test_windows_without_a_class_are_predicted_with_an_empty_truth(results: Results) -> None:
    unknown = replace(results.windows, labels=np.full(8, UNLABELLED))
    table = Results(unknown, results.probabilities).predictions()
    assert set(table["class"]) == {""}
    assert table["predicted"].tolist() == np.array(unknown.classes)[TAKEN_FOR].tolist()


def test_logits_become_probabilities(results: Results) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]] * 8)
    made = Results.of(results.windows, logits)
    np.testing.assert_allclose(made.probabilities.sum(axis=1), 1.0)
    assert made.predicted.tolist() == [2] * 8


def test_the_result_stands_in_one_line_beside_the_baselines() -> None:
    line = comparison(0.9123, {"majority": 0.46, "random forest": 0.943})
    assert line == "accuracy: LSTM 0.912 (majority 0.460, random forest 0.943)"
