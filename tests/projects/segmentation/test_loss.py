import pytest
import torch
from monai.losses.dice import DiceCELoss

from projects.segmentation.loss import DiceAndEntropy


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 12, 10, generator=generator)
    return logits, (torch.rand(3, 1, 12, 10, generator=generator) < 0.4).float()


def test_it_is_monais_where_every_image_has_foreground(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert float(DiceAndEntropy()(*batch)) == pytest.approx(float(DiceCELoss(sigmoid=True)(*batch)), rel=1e-5)


def test_of_several_classes_it_is_monais_without_background() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    target = torch.randint(3, (2, 1, 8, 8), generator=generator).float()
    monai = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
    # The cross entropy of MONAI leaves the background out as well, which would leave nobody to judge it.
    dice = monai.dice(logits, target)
    entropy = torch.nn.functional.cross_entropy(logits, target[:, 0].long())
    assert float(DiceAndEntropy()(logits, target)) == pytest.approx(float(dice + entropy), rel=1e-5)


@pytest.mark.parametrize("classes", [1, 3])
def test_void_pixels_do_not_matter(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, 8, 8, generator=generator)
    target = torch.randint(max(2, classes), (2, 1, 8, 8), generator=generator).float()
    target[:, :, :3] = -1
    other = logits.clone()
    other[:, :, :3] = 50
    loss = DiceAndEntropy()
    assert float(loss(logits, target)) == float(loss(other, target))
    assert float(loss(logits, target)) == pytest.approx(float(loss(logits[:, :, 3:], target[:, :, 3:])), rel=1e-5)


def test_an_empty_mask_in_which_nothing_is_found_has_no_loss() -> None:
    empty = torch.zeros(1, 1, 8, 8)
    assert float(DiceAndEntropy()(torch.full((1, 1, 8, 8), -20.0), empty)) == pytest.approx(0, abs=1e-6)


def test_the_loss_of_an_empty_mask_grows_with_what_is_wrongly_found() -> None:
    losses = []
    for wrong in (0, 1, 8, 64):
        logits = torch.full((1, 1, 8, 8), -4.0)
        logits.view(-1)[:wrong] = 4
        losses.append(float(DiceAndEntropy()(logits, torch.zeros(1, 1, 8, 8))))
    assert losses == sorted(losses)
    assert losses[-1] > 20 * losses[0]


@pytest.mark.parametrize("classes", [1, 3])
def test_a_batch_that_nobody_judged_has_no_loss_and_no_gradient(classes: int) -> None:
    logits = torch.randn(1, classes, 8, 8, requires_grad=True)
    loss = DiceAndEntropy()(logits, torch.full((1, 1, 8, 8), -1.0))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()
