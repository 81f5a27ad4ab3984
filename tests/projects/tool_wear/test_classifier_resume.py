"""The classifier resumes exactly from a file, without a server."""

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

from mltrain.checkpoint import checkpoint_file
from mltrain.errors import DataError, StateMismatch
from projects.tool_wear import Position, ToolWearClassifier
from tests.projects.tool_wear.waves import SMALL, TRAIN, VAL, inverted, small_classifier
from tests.support.waiting import eventually, let_pass

ROOT = Path(__file__).parents[3]


def test_two_epochs_and_two_more_are_four_epochs_bit_for_bit(
    trained: tuple[ToolWearClassifier, Path], tmp_path: Path
) -> None:
    whole, whole_path = trained
    file = tmp_path / "wear.ckpt"
    small_classifier(epochs=2).train(TRAIN, VAL, checkpoint_path=file)
    again = small_classifier()
    history = again.train(TRAIN, VAL, resume_from_checkpoint=file)
    assert history == whole.history_
    assert np.array_equal(again.predict_proba(VAL[0]), whole.predict_proba(VAL[0]))
    # Optimizer, random numbers, counters and all: the files are the same to the last byte.
    assert file.read_bytes() == whole_path.read_bytes()


def test_a_resume_writes_elsewhere_where_it_is_told_to(tmp_path: Path) -> None:
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    small_classifier(epochs=1).train(TRAIN, VAL, checkpoint_path=first)
    before = first.read_bytes()
    small_classifier(epochs=2).train(TRAIN, VAL, checkpoint_path=second, resume_from_checkpoint=first)
    assert first.read_bytes() == before
    assert ToolWearClassifier().load_checkpoint(second).epoch == 2


LONG = 40
"""Epochs of a training that is stopped from outside."""


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The checkpoint file of a long, undisturbed training."""
    torch.set_num_threads(1)
    file = tmp_path_factory.mktemp("whole_file") / "wear.ckpt"
    small_classifier(epochs=LONG, patience=None).train(TRAIN, VAL, checkpoint_path=file)
    return file.read_bytes()


def training(file: Path) -> "subprocess.Popen[str]":
    """Start a training process; return after its first checkpoint."""
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


@pytest.mark.faults
def test_a_killed_training_resumes_as_if_nothing_had_happened(tmp_path: Path, whole_file: bytes) -> None:
    file = tmp_path / "killed.ckpt"
    process = training(file)
    let_pass(random.Random(0).uniform(0.05, 0.3))
    process.kill()
    process.communicate()
    assert 0 < ToolWearClassifier().load_checkpoint(file).epoch < LONG
    small_classifier(epochs=LONG, patience=None).train(TRAIN, VAL, resume_from_checkpoint=file)
    assert file.read_bytes() == whole_file


@pytest.mark.faults
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
    small_classifier(epochs=LONG, patience=None).train(TRAIN, VAL, resume_from_checkpoint=file)
    assert file.read_bytes() == whole_file


def test_it_stops_early_counts_on_after_a_resume_and_ends_with_the_best_weights(tmp_path: Path) -> None:
    """On the swapped classes an early epoch is best."""
    whole = small_classifier(epochs=20, patience=3)
    whole.train(TRAIN, inverted(), checkpoint_path=tmp_path / "whole.ckpt")
    stopped_at, best, waited = ToolWearClassifier().load_checkpoint(tmp_path / "whole.ckpt")
    assert (stopped_at, waited) == (best + 3, 3)
    assert best < 10
    until_best = small_classifier(epochs=best)
    until_best.train(TRAIN, inverted())
    assert np.array_equal(whole.predict_proba(VAL[0]), until_best.predict_proba(VAL[0]))

    file = tmp_path / "resumed.ckpt"
    small_classifier(epochs=best + 2, patience=3).train(TRAIN, inverted(), checkpoint_path=file)
    assert ToolWearClassifier().load_checkpoint(file) == Position(best + 2, best, 2)
    resumed = small_classifier(epochs=20, patience=3)
    assert resumed.train(TRAIN, inverted(), resume_from_checkpoint=file) == whole.history_
    # The best epoch lies before the interruption, and its weights are those that count.
    assert np.array_equal(resumed.predict_proba(VAL[0]), until_best.predict_proba(VAL[0]))
    assert file.read_bytes() == (tmp_path / "whole.ckpt").read_bytes()


def test_a_training_that_is_done_trains_no_further(trained: tuple[ToolWearClassifier, Path], tmp_path: Path) -> None:
    classifier = small_classifier()
    history = classifier.train(TRAIN, VAL, resume_from_checkpoint=trained[1], checkpoint_path=tmp_path / "copy.ckpt")
    assert history == trained[0].history_
    assert np.array_equal(classifier.predict(VAL[0]), trained[0].predict(VAL[0]))
    assert (tmp_path / "copy.ckpt").read_bytes() == trained[1].read_bytes()


def test_a_lower_learning_rate_on_a_resume_takes_effect(tmp_path: Path) -> None:
    file = tmp_path / "wear.ckpt"
    small_classifier(epochs=2).train(TRAIN, VAL, checkpoint_path=file)
    history = small_classifier(epochs=3, lr=1e-4).train(TRAIN, VAL, resume_from_checkpoint=file)
    assert history["learning_rate"] == [1e-2, 1e-2, 1e-4]


def test_a_checkpoint_saved_by_hand_holds_all_that_a_resume_needs(tmp_path: Path) -> None:
    file = tmp_path / "by hand.ckpt"
    half = small_classifier(epochs=2)
    half.train(TRAIN, VAL)
    half.save_checkpoint(file)
    assert ToolWearClassifier().load_checkpoint(file) == Position(2, 2, 0)
    resumed, whole = small_classifier(), small_classifier()
    assert resumed.train(TRAIN, VAL, resume_from_checkpoint=file) == whole.train(TRAIN, VAL)
    assert np.array_equal(resumed.predict_proba(VAL[0]), whole.predict_proba(VAL[0]))


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
        small_classifier(**changes).train(train, resume_from_checkpoint=trained[1])
    assert trained[1].read_bytes() == before


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
