import pytest
import torch
from monai.losses.dice import DiceCELoss
from torch.utils.data import DataLoader

from projects.segmentation.dataset import SegmentationData
from projects.segmentation.folders import Sample
from projects.segmentation.model import SegmentationNet
from projects.segmentation.validation import Validation


@pytest.fixture
def data(blobs: tuple[Sample, ...]) -> SegmentationData:
    return SegmentationData(blobs, (40, 56), channels=1)


@pytest.fixture
def net() -> SegmentationNet:
    torch.manual_seed(0)
    return SegmentationNet(1, (40, 56), 0.4, 0.1)


def test_the_size_of_the_batches_does_not_matter(data: SegmentationData, net: SegmentationNet) -> None:
    # Six samples in batches of four leave one of two, which must not count as much.
    loss = DiceCELoss(sigmoid=True)
    one, four = (Validation(net, loss, DataLoader(data, size))() for size in (1, 4))
    assert one == pytest.approx(four, rel=1e-5)


def test_the_names_are_those_that_every_project_has(data: SegmentationData, net: SegmentationNet) -> None:
    measured = Validation(net, DiceCELoss(sigmoid=True), DataLoader(data, 6))()
    assert set(measured) >= {"val/loss", "val/iou", "val/precision", "val/recall", "val/f1", "val/iou_per_image"}
    assert all(isinstance(value, float) for value in measured.values())


def test_validation_leaves_no_trace_in_the_network(data: SegmentationData, net: SegmentationNet) -> None:
    before = {name: value.clone() for name, value in net.train().state_dict().items()}
    validation = Validation(net, DiceCELoss(sigmoid=True), DataLoader(data, 6))
    assert validation() == validation()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(weight.grad is None for weight in net.parameters())


def test_a_perfect_network_has_perfect_scores(data: SegmentationData) -> None:
    class Oracle(torch.nn.Module):
        """Knows the masks by the images."""

        def __init__(self) -> None:
            super().__init__()
            self.sure = torch.nn.Parameter(torch.tensor(20.0))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            known = {float(image.sum()): mask for image, mask in data}
            return torch.stack([self.sure * (known[float(image.sum())] - 0.5) for image in images])

    measured = Validation(Oracle(), DiceCELoss(sigmoid=True), DataLoader(data, 4))()
    assert measured.pop("val/loss") < 0.01
    assert set(measured.values()) == {1.0}
