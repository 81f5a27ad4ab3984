"""The classifier learns, resumes bit for bit from a file without a server, and keeps scikit-learn's habits."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GroupKFold, cross_val_score

from mltrain.checkpoint import checkpoint_file
from mltrain.errors import ConfigError, DamagedCheckpoint, DataError, NoCheckpoint, StateMismatch, UsageError
from projects.tool_wear import Position, ToolWearClassifier
from tests.support.waiting import eventually, let_pass

from .waves import SMALL, TRAIN, VAL, inverted

ROOT = Path(__file__).parents[3]


def small(**changes: Any) -> ToolWearClassifier:
    return ToolWearClassifier(**{**SMALL, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ToolWearClassifier, Path]:
    """A classifier that nothing happened to, and its checkpoint."""
    torch.set_num_threads(1)
    file = tmp_path_factory.mktemp("trained") / "wear.ckpt"
    classifier = small()
    classifier.train(TRAIN, VAL, checkpoint_path=file)
    return classifier, file


def test_it_learns() -> None:
    classifier = small(epochs=15)
    classifier.train(TRAIN, VAL)
    assert classifier.score(*VAL) > 0.9


def test_predictions_are_the_classes_that_were_given(trained: tuple[ToolWearClassifier, Path]) -> None:
    classifier, _ = trained
    probabilities = classifier.predict_proba(VAL[0])
    predicted = classifier.predict(VAL[0])
    assert classifier.classes_.tolist() == [3, 5, 8]
    assert probabilities.shape == (64, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert np.array_equal(predicted, np.array([3, 5, 8])[probabilities.argmax(axis=1)])
    assert classifier.score(*VAL) == pytest.approx((predicted == VAL[1]).mean())


def test_the_history_has_one_value_an_epoch_in_every_column(trained: tuple[ToolWearClassifier, Path]) -> None:
    history = trained[0].history_
    assert {"epoch", "train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= history.keys()
    assert history["epoch"] == [1, 2, 3, 4]
    assert all(len(column) == 4 for column in history.values())


def test_without_validation_data_all_epochs_are_trained_and_the_last_weights_are_used(tmp_path: Path) -> None:
    classifier = small(patience=1)
    history = classifier.train(TRAIN, checkpoint_path=tmp_path / "wear.ckpt")
    assert history["epoch"] == [1, 2, 3, 4]
    assert not any(name.startswith("val/") for name in history)
    last = checkpoint_file.read(tmp_path / "wear.ckpt")["model"]
    assert all(torch.equal(value, last[name]) for name, value in classifier.model_.state_dict().items())


def test_the_scaler_knows_the_training_data_alone(trained: tuple[ToolWearClassifier, Path]) -> None:
    expected = TRAIN[0].astype(np.float32).mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    assert np.array_equal(trained[0].model_.scaler.mean.numpy(), expected)


def test_two_epochs_and_two_more_are_four_epochs_bit_for_bit(
    trained: tuple[ToolWearClassifier, Path], tmp_path: Path
) -> None:
    whole, whole_path = trained
    file = tmp_path / "wear.ckpt"
    small(epochs=2).train(TRAIN, VAL, checkpoint_path=file)
    again = small()
    history = again.train(TRAIN, VAL, resume_from_checkpoint=file)
    assert history == whole.history_
    assert np.array_equal(again.predict_proba(VAL[0]), whole.predict_proba(VAL[0]))
    # Optimizer, random numbers, counters and all: the files are the same to the last byte.
    assert file.read_bytes() == whole_path.read_bytes()


def test_a_resume_writes_elsewhere_where_it_is_told_to(tmp_path: Path) -> None:
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    small(epochs=1).train(TRAIN, VAL, checkpoint_path=first)
    before = first.read_bytes()
    small(epochs=2).train(TRAIN, VAL, checkpoint_path=second, resume_from_checkpoint=first)
    assert first.read_bytes() == before
    assert ToolWearClassifier().load_checkpoint(second).epoch == 2


LONG = 40
"""Epochs of a training that is stopped from outside."""


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The checkpoint file of a long training that nothing happened to."""
    torch.set_num_threads(1)
    file = tmp_path_factory.mktemp("whole_file") / "wear.ckpt"
    small(epochs=LONG, patience=None).train(TRAIN, VAL, checkpoint_path=file)
    return file.read_bytes()


def training(file: Path) -> "subprocess.Popen[str]":
    """Start a training in a process of its own, and return when it has written its first checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.projects.tool_wear.waves", str(file), str(LONG)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: file.exists() or process.poll() is not None, file)
    assert process.poll() is None, process.communicate()[1]
    return process


def test_a_killed_training_resumes_as_if_nothing_had_happened(tmp_path: Path, whole_file: bytes) -> None:
    file = tmp_path / "killed.ckpt"
    process = training(file)
    let_pass(random.Random(0).uniform(0.05, 0.3))
    process.kill()
    process.communicate()
    assert 0 < ToolWearClassifier().load_checkpoint(file).epoch < LONG
    small(epochs=LONG, patience=None).train(TRAIN, VAL, resume_from_checkpoint=file)
    assert file.read_bytes() == whole_file


@pytest.mark.parametrize(
    ("request_", "code"),
    [(signal.SIGINT, -signal.SIGINT), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_training_that_is_asked_to_stop_saves_its_step_and_resumes_there(
    tmp_path: Path, whole_file: bytes, request_: signal.Signals, code: int
) -> None:
    file = tmp_path / "stopped.ckpt"
    process = training(file)
    process.send_signal(request_)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"Stopped by {request_.name}" in said
    assert f"resume_from_checkpoint='{file}'" in said
    small(epochs=LONG, patience=None).train(TRAIN, VAL, resume_from_checkpoint=file)
    assert file.read_bytes() == whole_file


def test_it_stops_early_counts_on_after_a_resume_and_ends_with_the_best_weights(tmp_path: Path) -> None:
    """On the swapped classes learning soon does harm, so that the best epoch is one of the first."""
    whole = small(epochs=20, patience=3)
    whole.train(TRAIN, inverted(), checkpoint_path=tmp_path / "whole.ckpt")
    stopped_at, best, waited = ToolWearClassifier().load_checkpoint(tmp_path / "whole.ckpt")
    assert (stopped_at, waited) == (best + 3, 3)
    assert best < 10
    until_best = small(epochs=best)
    until_best.train(TRAIN, inverted())
    assert np.array_equal(whole.predict_proba(VAL[0]), until_best.predict_proba(VAL[0]))

    file = tmp_path / "resumed.ckpt"
    small(epochs=best + 2, patience=3).train(TRAIN, inverted(), checkpoint_path=file)
    assert ToolWearClassifier().load_checkpoint(file) == Position(best + 2, best, 2)
    resumed = small(epochs=20, patience=3)
    assert resumed.train(TRAIN, inverted(), resume_from_checkpoint=file) == whole.history_
    # The best epoch lies before the interruption, and its weights are those that count.
    assert np.array_equal(resumed.predict_proba(VAL[0]), until_best.predict_proba(VAL[0]))
    assert file.read_bytes() == (tmp_path / "whole.ckpt").read_bytes()


def test_a_training_that_is_done_trains_no_further(trained: tuple[ToolWearClassifier, Path], tmp_path: Path) -> None:
    classifier = small()
    history = classifier.train(TRAIN, VAL, resume_from_checkpoint=trained[1], checkpoint_path=tmp_path / "copy.ckpt")
    assert history == trained[0].history_
    assert np.array_equal(classifier.predict(VAL[0]), trained[0].predict(VAL[0]))
    assert (tmp_path / "copy.ckpt").read_bytes() == trained[1].read_bytes()


def test_a_lower_learning_rate_on_a_resume_takes_effect(tmp_path: Path) -> None:
    file = tmp_path / "wear.ckpt"
    small(epochs=2).train(TRAIN, VAL, checkpoint_path=file)
    history = small(epochs=3, lr=1e-4).train(TRAIN, VAL, resume_from_checkpoint=file)
    assert history["learning_rate"] == [1e-2, 1e-2, 1e-4]


def test_a_checkpoint_loads_into_a_classifier_with_other_parameters(trained: tuple[ToolWearClassifier, Path]) -> None:
    loaded = ToolWearClassifier(device="cpu", hidden=99, layers=3)
    epoch, best_epoch, without_improvement = loaded.load_checkpoint(trained[1])
    assert (epoch, best_epoch + without_improvement) == (4, 4)
    assert np.array_equal(loaded.predict_proba(VAL[0]), trained[0].predict_proba(VAL[0]))
    assert loaded.history_ == trained[0].history_
    assert loaded.hidden == 99


def test_a_checkpoint_saved_by_hand_holds_all_that_a_resume_needs(tmp_path: Path) -> None:
    file = tmp_path / "by hand.ckpt"
    half = small(epochs=2)
    half.train(TRAIN, VAL)
    half.save_checkpoint(file)
    assert ToolWearClassifier().load_checkpoint(file) == Position(2, 2, 0)
    resumed, whole = small(), small()
    assert resumed.train(TRAIN, VAL, resume_from_checkpoint=file) == whole.train(TRAIN, VAL)
    assert np.array_equal(resumed.predict_proba(VAL[0]), whole.predict_proba(VAL[0]))


def test_what_was_loaded_can_be_saved_again(trained: tuple[ToolWearClassifier, Path], tmp_path: Path) -> None:
    loaded = ToolWearClassifier(device="cpu")
    loaded.load_checkpoint(trained[1])
    loaded.save_checkpoint(tmp_path / "again.ckpt")
    assert (tmp_path / "again.ckpt").read_bytes() == trained[1].read_bytes()


def test_counts_of_a_loop_of_ones_own_are_kept(trained: tuple[ToolWearClassifier, Path], tmp_path: Path) -> None:
    trained[0].save_checkpoint(tmp_path / "a.ckpt", epoch=9, best_epoch=7, epochs_without_improvement=2)
    assert ToolWearClassifier().load_checkpoint(tmp_path / "a.ckpt") == (9, 7, 2)


def test_the_callers_random_numbers_and_threads_are_left_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    torch.set_num_threads(2)
    small(epochs=1).train(TRAIN, VAL)
    assert torch.get_num_threads() == 2
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


def test_the_seed_decides() -> None:
    first, again, other = small(epochs=1), small(epochs=1), small(epochs=1, seed=1)
    for classifier in (first, again, other):
        classifier.train(TRAIN, VAL)
    assert np.array_equal(first.predict_proba(VAL[0]), again.predict_proba(VAL[0]))
    assert not np.array_equal(first.predict_proba(VAL[0]), other.predict_proba(VAL[0]))


def test_it_is_cloned_with_its_parameters_and_without_what_it_learnt(
    trained: tuple[ToolWearClassifier, Path],
) -> None:
    copy = clone(trained[0])
    assert copy.get_params() == trained[0].get_params()
    assert copy.set_params(lr=0.5).lr == 0.5
    with pytest.raises(NotFittedError):
        copy.predict(VAL[0])
    with pytest.raises(NotFittedError):
        copy.save_checkpoint("nowhere")


def test_scikit_learn_can_validate_it_by_groups() -> None:
    groups = np.arange(128) % 2
    scores = cross_val_score(small(epochs=25), *TRAIN, groups=groups, cv=GroupKFold(2))
    assert scores.shape == (2,)
    assert scores.min() > 0.6


def test_names_as_classes_survive_a_checkpoint(tmp_path: Path) -> None:
    signals, classes = TRAIN
    names = np.array(["new", "used", "worn"])[np.searchsorted([3, 5, 8], classes)]
    small(epochs=1).train((signals, names), checkpoint_path=tmp_path / "names.ckpt")
    loaded = ToolWearClassifier(device="cpu")
    loaded.load_checkpoint(tmp_path / "names.ckpt")
    assert set(loaded.predict(VAL[0])) <= {"new", "used", "worn"}


@pytest.mark.parametrize(
    ("train", "changes", "error", "said"),
    [
        ((TRAIN[0], TRAIN[1] + 1), {}, DataError, r"classes \[3, 5, 8\]; here are \[4, 6, 9\]"),
        (TRAIN, {"hidden": 13}, StateMismatch, "of another shape"),
        (TRAIN, {"layers": 2}, StateMismatch, "missing in the checkpoint"),
        ((TRAIN[0][..., :1], TRAIN[1]), {}, StateMismatch, "of another shape"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    trained: tuple[ToolWearClassifier, Path],
    train: Any,
    changes: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    before = trained[1].read_bytes()
    with pytest.raises(error, match=said):
        small(**changes).train(train, resume_from_checkpoint=trained[1])
    assert trained[1].read_bytes() == before


def test_places_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpoint, match="There is no checkpoint"):
        ToolWearClassifier().load_checkpoint(tmp_path / "nothing.ckpt")
    with pytest.raises(NoCheckpoint):
        small().train(TRAIN, resume_from_checkpoint=tmp_path / "nothing.ckpt")
    (tmp_path / "text.ckpt").write_text("epoch 3")
    with pytest.raises(DamagedCheckpoint):
        ToolWearClassifier().load_checkpoint(tmp_path / "text.ckpt")


def test_signals_of_other_channels_are_refused(trained: tuple[ToolWearClassifier, Path]) -> None:
    with pytest.raises(DataError, match="3 channels, and the network was trained on 2"):
        trained[0].predict(np.zeros((1, 24, 3)))


@pytest.mark.parametrize("changes", [{"epochs": -1}, {"device": "toaster"}, {"patience": 0}])
def test_parameters_without_meaning_are_refused_when_training_begins(changes: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, UsageError)):
        small(**changes).train(TRAIN, VAL)


def test_a_checkpoint_of_before_the_kernels_is_continued_without_them(tmp_path: Path) -> None:
    old = {**SMALL, "kernels": 0, "epoch_steps": 1}
    ToolWearClassifier(**{**old, "epochs": 2}).train(TRAIN, VAL, checkpoint_path=tmp_path / "new.ckpt")
    state = checkpoint_file.read(tmp_path / "new.ckpt")
    for name in ("kernels", "epoch_steps"):
        del state["classifier"]["parameters"][name]
    checkpoint_file.write(tmp_path / "old.ckpt", state)
    resumed = ToolWearClassifier(**{**SMALL, "kernels": 8, "epoch_steps": 20})
    resumed.train(TRAIN, VAL, resume_from_checkpoint=tmp_path / "old.ckpt")
    whole = ToolWearClassifier(**old)
    whole.train(TRAIN, VAL)
    assert np.array_equal(resumed.predict_proba(VAL[0]), whole.predict_proba(VAL[0]))
