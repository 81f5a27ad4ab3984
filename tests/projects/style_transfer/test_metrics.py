from pathlib import Path

import pytest
import torch

from mltrain import Task
from projects.style_transfer.classifier import share_named, trained_classifier
from projects.style_transfer.folders import styles_in
from projects.style_transfer.metrics import Judgement
from projects.style_transfer.pictures import random_crops, read_pictures
from tests.projects.style_transfer.conftest import built, quick, train


@pytest.fixture
def task(styles: Path) -> Task:
    return built(quick(image_dir=styles))


def judge(task: Task) -> Judgement:
    assert isinstance(task.evaluate, Judgement)
    return task.evaluate


def test_an_untrained_flow_is_the_identity_and_scores_as_such(task: Task) -> None:
    scores = judge(task)()
    # What the codec loses is all that differs.
    assert scores["val/swd"] == pytest.approx(scores["val/swd_identity"], rel=0.02)
    assert scores["val/swd_train"] == pytest.approx(scores["val/swd_train_identity"], rel=0.02)
    assert scores["val/swd_train_floor"] < 0.4 * scores["val/swd_train_identity"]
    assert scores["val/ssm"] < 0.1 * scores["val/ssm_chance"]
    assert scores["val/ssim"] > 0.9
    assert scores["val/round_trip"] < 1e-5


def test_the_loss_weighs_style_and_content(styles: Path) -> None:
    scores = judge(built(quick(image_dir=styles, w_style=3, w_content=0.5)))()
    assert scores["val/loss"] == pytest.approx(3 * scores["val/swd_train"] + 0.5 * scores["val/ssm"])


def test_judging_twice_gives_the_same_and_draws_no_random_numbers(task: Task) -> None:
    train(task, 1)
    before = torch.get_rng_state()
    assert judge(task)() == judge(task)()
    assert torch.equal(before, torch.get_rng_state())


def test_every_pair_of_two_styles_is_scored(task: Task) -> None:
    assert [(pair.source, pair.target) for pair in judge(task).pairs()] == [("dots", "stripes"), ("stripes", "dots")]


def test_the_classifier_tells_styles_apart_on_works_that_it_never_saw(styles: Path) -> None:
    found = styles_in(styles)
    classifier = trained_classifier([read_pictures(style.train, 40) for style in found], 32, 40)
    for index, style in enumerate(found):
        crops = random_crops(read_pictures(style.held_out, 40), 32, 16)
        assert share_named(classifier, crops, index) > 0.9
        assert share_named(classifier, crops, 1 - index) < 0.1
