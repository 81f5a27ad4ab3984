from pathlib import Path

import pytest
import torch

from mltrain import Task
from projects.style_transfer.classifier import share_named, trained_classifier
from projects.style_transfer.folders import styles_in
from projects.style_transfer.metrics import Judgement, comparison, quality
from projects.style_transfer.pictures import random_crops, read_pictures
from tests.projects.style_transfer.conftest import built, quick, train


@pytest.fixture
def task(styles: Path) -> Task:
    return built(quick(image_dir=styles))


def judge(task: Task) -> Judgement:
    assert isinstance(task.evaluate, Judgement)
    return task.evaluate


def test_an_untrained_flow_through_noise_is_the_identity_and_scores_as_such(styles: Path) -> None:
    scores = judge(built(quick(image_dir=styles, route="noise")))()
    # What the codec loses is all that differs.
    assert scores["val/swd"] == pytest.approx(scores["val/swd_identity"], rel=0.02)
    assert scores["val/swd_train"] == pytest.approx(scores["val/swd_train_identity"], rel=0.02)
    assert scores["val/swd_train_floor"] < 0.4 * scores["val/swd_train_identity"]
    assert scores["val/ssm"] < 0.1 * scores["val/ssm_chance"]
    assert scores["val/ssim"] > 0.9
    assert scores["val/round_trip"] < 1e-5
    assert abs(scores["val/quality"]) < 0.02


def test_an_untrained_flow_of_transport_is_a_translation_already(task: Task) -> None:
    scores = judge(task)()
    assert scores["val/swd_train"] < 0.9 * scores["val/swd_train_identity"]
    assert scores["val/quality"] > 0.3
    assert scores["val/round_trip"] < 1e-5


def test_the_loss_weighs_style_and_content(styles: Path) -> None:
    scores = judge(built(quick(image_dir=styles, w_style=3, w_content=0.5)))()
    assert scores["val/loss"] == pytest.approx(3 * scores["val/swd_train"] + 0.5 * scores["val/ssm"])


DISTANCES = {"swd_identity": 0.6, "swd_floor": 0.1, "ssm_chance": 0.5}


@pytest.mark.parametrize(
    ("swd", "ssm", "expected"),
    [
        (0.6, 0.0, 0.0),  # nothing done
        (0.1, 0.5, 0.0),  # real works of the target, which have nothing of the source
        (0.1, 0.0, 1.0),
        (0.35, 0.25, 0.5),
        (0.35, 0.0, 2 / 3),
        (0.85, 0.1, -0.5),  # further from the style than before
    ],
)
def test_quality_tells_translation_from_identity_and_from_other_pictures(
    swd: float, ssm: float, expected: float
) -> None:
    assert quality(swd=swd, ssm=ssm, **DISTANCES) == pytest.approx(expected, abs=1e-9)


def test_the_baselines_are_measured_like_the_flow(task: Task) -> None:
    pairs = judge(task).pairs()
    methods = judge(task).methods(pairs)
    assert list(methods) == ["flow", "identity", "colour matrix", "histogram"]
    assert methods["identity"]["swd"] == methods["identity"]["swd_identity"] == methods["flow"]["swd_identity"]
    assert methods["identity"]["quality"] == methods["identity"]["ssm"] == 0
    assert methods["colour matrix"]["swd_train"] < 0.9 * methods["identity"]["swd_train"]
    scores = judge(task)()
    for name in ("quality", "swd", "swd_train", "ssm", "ssim"):
        assert scores[f"val/{name}_colour_matrix"] == methods["colour matrix"][name]


def test_the_log_shows_the_methods_and_names_what_is_not_beaten(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        judge(task)()
    shown = [record.message.split("  ")[0].strip() for record in caplog.records]
    assert [name for name in shown if name in ("flow", "identity", "colour matrix", "histogram")] == [
        "flow",
        "identity",
        "colour matrix",
        "histogram",
    ]
    scores = {"swd": 0.0, "swd_train": 0.0, "ssm": 0.0, "ssim": 0.0, "style_accuracy": 0.0}
    methods = {
        name: scores | {"quality": value} for name, value in (("flow", 0.5), ("identity", 0.0), ("histogram", 0.6))
    }
    assert comparison(methods)[-1] == "By quality the flow does not beat: histogram."
    assert (
        comparison(methods | {"histogram": scores | {"quality": 0.4}})[-1]
        == "By quality the flow beats every baseline."
    )


def test_judging_twice_gives_the_same_and_draws_no_random_numbers(task: Task) -> None:
    train(task, 1)
    before = torch.get_rng_state()
    assert judge(task)() == judge(task)()
    assert torch.equal(before, torch.get_rng_state())


def test_every_pair_of_two_styles_is_scored(task: Task) -> None:
    pairs = judge(task).pairs()
    for method in ("flow", "identity", "colour matrix", "histogram"):
        own = [(pair.source, pair.target) for pair in pairs if pair.method == method]
        assert own == [("dots", "stripes"), ("stripes", "dots")]


def test_the_classifier_tells_styles_apart_on_works_that_it_never_saw(styles: Path) -> None:
    found = styles_in(styles)
    classifier = trained_classifier([read_pictures(style.train, 40) for style in found], 32, 40)
    for index, style in enumerate(found):
        crops = random_crops(read_pictures(style.held_out, 40), 32, 16)
        assert share_named(classifier, crops, index) > 0.9
        assert share_named(classifier, crops, 1 - index) < 0.1
