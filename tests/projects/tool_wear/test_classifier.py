"""The classifier learns, predicts, saves and follows scikit-learn's conventions."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GroupKFold, cross_val_score

from mltrain.checkpoint import checkpoint_file
from mltrain.errors import ConfigError, DamagedCheckpoint, DataError, NoCheckpoint, UsageError
from projects.tool_wear import ToolWearClassifier
from tests.projects.tool_wear.waves import TRAIN, VAL, small_classifier


def test_it_learns() -> None:
    classifier = small_classifier(epochs=15)
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
    classifier = small_classifier(patience=1)
    history = classifier.train(TRAIN, checkpoint_path=tmp_path / "wear.ckpt")
    assert history["epoch"] == [1, 2, 3, 4]
    assert not any(name.startswith("val/") for name in history)
    last = checkpoint_file.read(tmp_path / "wear.ckpt")["model"]
    assert all(torch.equal(value, last[name]) for name, value in classifier.model_.state_dict().items())


def test_the_scaler_knows_the_training_data_alone(trained: tuple[ToolWearClassifier, Path]) -> None:
    expected = TRAIN[0].astype(np.float32).mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    assert np.array_equal(trained[0].model_.scaler.mean.numpy(), expected)


def test_a_checkpoint_loads_into_a_classifier_with_other_parameters(trained: tuple[ToolWearClassifier, Path]) -> None:
    loaded = ToolWearClassifier(device="cpu", hidden=99, layers=3)
    epoch, best_epoch, without_improvement = loaded.load_checkpoint(trained[1])
    assert (epoch, best_epoch + without_improvement) == (4, 4)
    assert np.array_equal(loaded.predict_proba(VAL[0]), trained[0].predict_proba(VAL[0]))
    assert loaded.history_ == trained[0].history_
    assert loaded.hidden == 99


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
    small_classifier(epochs=1).train(TRAIN, VAL)
    assert torch.get_num_threads() == 2
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


def test_the_seed_decides() -> None:
    first, again, other = small_classifier(epochs=1), small_classifier(epochs=1), small_classifier(epochs=1, seed=1)
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
    scores = cross_val_score(small_classifier(epochs=25), *TRAIN, groups=groups, cv=GroupKFold(2))
    assert scores.shape == (2,)
    assert scores.min() > 0.6


def test_names_as_classes_survive_a_checkpoint(tmp_path: Path) -> None:
    signals, classes = TRAIN
    names = np.array(["new", "used", "worn"])[np.searchsorted([3, 5, 8], classes)]
    small_classifier(epochs=1).train((signals, names), checkpoint_path=tmp_path / "names.ckpt")
    loaded = ToolWearClassifier(device="cpu")
    loaded.load_checkpoint(tmp_path / "names.ckpt")
    assert set(loaded.predict(VAL[0])) <= {"new", "used", "worn"}


def test_places_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpoint, match="There is no checkpoint"):
        ToolWearClassifier().load_checkpoint(tmp_path / "nothing.ckpt")
    with pytest.raises(NoCheckpoint):
        small_classifier().train(TRAIN, resume_from_checkpoint=tmp_path / "nothing.ckpt")
    (tmp_path / "text.ckpt").write_text("epoch 3")
    with pytest.raises(DamagedCheckpoint):
        ToolWearClassifier().load_checkpoint(tmp_path / "text.ckpt")


def test_signals_of_other_channels_are_refused(trained: tuple[ToolWearClassifier, Path]) -> None:
    with pytest.raises(DataError, match="3 channels, and the network was trained on 2"):
        trained[0].predict(np.zeros((1, 24, 3)))


@pytest.mark.parametrize("changes", [{"epochs": -1}, {"device": "toaster"}, {"patience": 0}])
def test_parameters_without_meaning_are_refused_when_training_begins(changes: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, UsageError)):
        small_classifier(**changes).train(TRAIN, VAL)
