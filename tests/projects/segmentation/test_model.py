import pytest
import torch

from projects.segmentation.framing import UNKNOWN, Framing
from projects.segmentation.model import SegmentationNet


def test_the_logits_have_the_size_of_the_images() -> None:
    assert SegmentationNet(3, (32, 56))(torch.rand(2, 3, 32, 56)).shape == (2, 1, 32, 56)


def test_brightness_and_contrast_of_the_camera_do_not_matter_once_they_are_known() -> None:
    torch.manual_seed(0)
    bright, dim = SegmentationNet(1, (32, 32), 0.5, 0.2).eval(), SegmentationNet(1, (32, 32), 0.05, 0.02).eval()
    dim.unet.load_state_dict(bright.unet.state_dict())
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(bright(images), dim(images / 10), rtol=1e-4, atol=1e-4)


def test_weights_bring_the_standardisation_of_their_training_along() -> None:
    trained, fresh = SegmentationNet(1, (32, 32), 0.3, 0.1).eval(), SegmentationNet(1, (32, 32)).eval()
    fresh.load_state_dict(trained.state_dict())
    images = torch.rand(1, 1, 32, 32)
    assert torch.equal(trained(images), fresh(images))


def test_there_are_four_hundred_thousand_weights() -> None:
    assert 350_000 < sum(weight.numel() for weight in SegmentationNet(1, (32, 32)).parameters()) < 450_000


def test_the_size_of_the_last_training_is_remembered() -> None:
    net = SegmentationNet(1, (64, 64))
    net.train()(torch.rand(2, 1, 32, 40))
    net.eval()(torch.rand(2, 1, 16, 16))
    assert net.size == (32, 40)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_can_be_made_from_its_state_alone(channels: int) -> None:
    trained = SegmentationNet(channels, (32, 40), 0.3, 0.1).eval()
    again = SegmentationNet.of(trained.state_dict()).eval()
    images = torch.rand(1, channels, 32, 40)
    assert torch.equal(again(images), trained(images))
    assert (again.channels, again.size) == (channels, (32, 40))


def test_the_state_of_another_network_is_refused() -> None:
    with pytest.raises(RuntimeError, match="trained_at"):
        SegmentationNet.of(torch.nn.Linear(2, 2).state_dict())


def test_a_state_of_an_earlier_version_stretches_its_pictures() -> None:
    trained = SegmentationNet(1, (32, 40), 0.3, 0.1, framing=Framing((32, 40))).eval()
    earlier = {
        name: value for name, value in trained.state_dict().items() if name not in ("stretched_to", "scale", "values")
    }
    for again in (SegmentationNet.of(earlier), SegmentationNet(1, (32, 40), framing=Framing((32, 40)))):
        again.load_state_dict(earlier)
        assert again.framing == Framing((32, 40), (32, 40), UNKNOWN)
        assert again.values.tolist() == [255]


def test_the_framing_of_the_training_is_part_of_the_state() -> None:
    for frame in (Framing((32, 40)), Framing((32, 40), (64, 64), (0.5, 0.25))):
        trained = SegmentationNet(1, (32, 40), framing=frame, values=(0, 5, 9))
        trained.train()(torch.rand(2, 1, 32, 40))
        again = SegmentationNet.of(trained.state_dict())
        assert again.framing == frame
        assert again.values.tolist() == [0, 5, 9]
        assert again(torch.rand(1, 1, 16, 16)).shape == (1, 3, 16, 16)
