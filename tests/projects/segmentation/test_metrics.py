import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score
from torch import Tensor
from torchmetrics.classification import BinaryJaccardIndex

import mltrain
from projects.segmentation.loss import DiceAndEntropy
from projects.segmentation.metrics import overlap_metrics
from projects.segmentation.overlap import SCORES


def computed(*batches: tuple[Tensor, Tensor]) -> dict[str, float]:
    metrics = overlap_metrics()
    for logits, target in batches:
        for metric in metrics.values():
            metric.update(logits, target)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def random_batch(seed: int, images: int = 4, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(images, 1, 9, 7, generator=generator) < 0.3).float()
    return scale * (target - 0.5 + torch.randn(target.shape, generator=generator)), target


@pytest.mark.parametrize("seed", range(10))
def test_f1_is_the_dice_coefficient(seed: int) -> None:
    scores = computed(random_batch(seed))
    assert scores["f1"] == pytest.approx(2 * scores["iou"] / (1 + scores["iou"]))


def test_scores_over_all_pixels_agree_with_scikit_learn() -> None:
    logits, target = random_batch(0)
    true, predicted = target.flatten().numpy() > 0, logits.flatten().numpy() > 0
    scores = computed((logits, target))
    assert scores["iou"] == pytest.approx(jaccard_score(true, predicted))
    assert scores["precision"] == pytest.approx(precision_score(true, predicted))
    assert scores["recall"] == pytest.approx(recall_score(true, predicted))
    assert scores["f1"] == pytest.approx(f1_score(true, predicted))


def test_small_logits_are_still_logits() -> None:
    # torchmetrics would take numbers that all lie between 0 and 1 for probabilities.
    target = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    assert computed((torch.tensor([[[[0.1, 0.2, 0.3, 0.0]]]]), target))["recall"] == 1.0


def test_batches_accumulate_over_pixels_and_over_images() -> None:
    first, second = random_batch(1, images=3), random_batch(2, images=1)
    together = tuple(torch.cat(parts) for parts in zip(first, second, strict=True))
    assert computed(first, second) == pytest.approx(computed((together[0], together[1])))


def test_scores_per_image_are_means_of_the_scores_of_each() -> None:
    logits, target = random_batch(3)
    pairs = [
        (one.flatten().numpy(), other.flatten().numpy()) for one, other in zip(target > 0, logits > 0, strict=True)
    ]
    scores = computed((logits, target))
    assert scores["iou_per_image"] == pytest.approx(np.mean([jaccard_score(*pair) for pair in pairs]))
    assert scores["f1_per_image"] == pytest.approx(np.mean([f1_score(*pair) for pair in pairs]))


@pytest.mark.parametrize(("predicted", "true", "score"), [(0, 0, 1.0), (1, 0, 0.0), (0, 1, 0.0), (1, 1, 1.0)], ids=str)
def test_finding_nothing_where_there_is_nothing_is_right(predicted: int, true: int, score: float) -> None:
    logits, target = torch.full((1, 1, 4, 4), predicted - 0.5), torch.full((1, 1, 4, 4), float(true))
    scores = computed((logits, target))
    assert set(scores.values()) == {score}
    counts = [np.array([16 * number]) for number in (predicted and true, predicted, true)]
    assert {float(of(*counts)[0]) for of in SCORES.values()} == {score}


def test_a_reset_metric_has_forgotten_everything() -> None:
    metrics = overlap_metrics()
    for metric in metrics.values():
        metric.update(*random_batch(4))
        metric.reset()
        metric.update(*random_batch(5))
    assert {name: float(metric.compute()) for name, metric in metrics.items()} == computed(random_batch(5))


def test_a_checkpoint_of_an_earlier_version_loads_and_counts_anew() -> None:
    earlier = BinaryJaccardIndex()
    earlier.persistent(True)
    metrics = overlap_metrics()
    metrics["iou"].load_state_dict(earlier.state_dict())
    assert earlier.state_dict()
    for metric in metrics.values():
        metric.update(*random_batch(6))
    assert {name: float(metric.compute()) for name, metric in metrics.items()} == computed(random_batch(6))


def test_every_score_is_over_all_processes() -> None:
    logits, target = torch.tensor([[[[1.0, 1.0, -1.0]]]]), torch.tensor([[[[1.0, 0.0, 0.0]]]])
    metrics = overlap_metrics()
    metrics["iou"].distributed_available_fn = lambda: True
    metrics["iou"].dist_sync_fn = lambda own, group: [own, torch.ones_like(own)]  # the other process: 1 of everything
    for metric in metrics.values():
        metric.update(logits, target)
    scores = {name: round(float(metric.compute()), 4) for name, metric in metrics.items()}
    assert scores == {
        "iou": 0.6667,
        "precision": 0.6667,
        "recall": 1.0,
        "f1": 0.8,
        "iou_per_image": 0.75,
        "f1_per_image": 0.8333,
    }
    assert metrics["iou"].hit.tolist() == [1], "the own counts remain"


# --- several classes and void


def test_void_pixels_count_nowhere() -> None:
    logits, target = random_batch(8)
    void = target.clone()
    void[:, :, :4] = -1
    assert computed((logits, void)) == pytest.approx(computed((logits[:, :, 4:], target[:, :, 4:])))


def several(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(4, (3, 1, 9, 7), generator=generator).float()
    target[0, 0, 0] = -1
    wanted = torch.nn.functional.one_hot(target[:, 0].clamp(min=0).long(), 4).permute(0, 3, 1, 2)
    return 2 * wanted + torch.randn(wanted.shape, generator=generator), target


def test_scores_of_several_classes_agree_with_scikit_learn() -> None:
    metrics = overlap_metrics(["a", "b", "c"])
    batches = [several(0), several(1)]
    for batch in batches:
        for metric in metrics.values():
            metric.update(*batch)
    scores = {name: float(metric.compute()) for name, metric in metrics.items()}
    predicted = torch.cat([logits.argmax(1).flatten() for logits, _ in batches])
    true = torch.cat([target.flatten() for _, target in batches])
    chosen, truth = predicted[true >= 0].numpy(), true[true >= 0].long().numpy()
    options = {"labels": [1, 2, 3]}
    for name, score in (("iou", jaccard_score), ("f1", f1_score)):
        each = score(truth, chosen, average=None, **options)
        assert [scores[f"{name}_{letter}"] for letter in "abc"] == pytest.approx(each.tolist())
        assert scores[name] == pytest.approx(each.mean())
    assert scores["precision"] == pytest.approx(precision_score(truth, chosen, average="macro", **options))
    assert scores["recall"] == pytest.approx(recall_score(truth, chosen, average="macro", **options))
    assert 0 < scores["iou_per_image"] < scores["f1_per_image"] < 1


def test_a_class_that_is_nowhere_is_left_out_of_the_mean() -> None:
    metrics = overlap_metrics(["a", "b"])
    logits, target = torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 2, 2)
    logits[:, 1, 0] = 5
    for metric in metrics.values():
        metric.update(logits, target)
    assert float(metrics["iou"].compute()) == float(metrics["iou_a"].compute()) == 0.5
    assert float(metrics["iou_b"].compute()) == 1.0


@pytest.mark.parametrize("classes", [[], ["a", "b"]], ids=len)
def test_half_an_epoch_survives_as_part_of_a_step(classes: list[str]) -> None:
    def step() -> mltrain.Supervised:
        net = torch.nn.Conv2d(3, len(classes) + 1, 1)
        return mltrain.Supervised(
            net, DiceAndEntropy(), torch.optim.SGD(net.parameters(), 0.1), metrics=overlap_metrics(classes)
        )

    one, other = step(), step()
    batch = torch.rand(2, 3, 8, 8), torch.randint(max(2, len(classes) + 1), (2, 1, 8, 8)).float()
    one(batch)
    for name, part in one.parts().items():
        other.parts()[name].load_state_dict(part.state_dict())
    one(batch)
    other(batch)
    assert one.epoch_metrics() == other.epoch_metrics()
    assert one.epoch_metrics() == {}, "a new epoch has seen no batch"
