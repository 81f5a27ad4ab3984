from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from mltrain.errors import DataError
from projects.segmentation.framing import Framing
from projects.segmentation.model import SegmentationNet
from projects.segmentation.pixels import read_image, read_values
from projects.segmentation.predict import Segmenter, main, predict, write_mask
from projects.segmentation.values import COLOUR
from tests.projects.segmentation.conftest import read_mask


@pytest.fixture
def bright() -> SegmentationNet:
    """A network whose foreground is brighter than the mean."""
    net = SegmentationNet(channels=1, size=(32, 32), mean=0.5, std=0.1)
    net.unet = nn.Identity()
    return net


def halves(height: int, width: int) -> np.ndarray:
    """Dark on the left and bright on the right."""
    return np.repeat([np.where(np.arange(width) < width // 2, 50, 200)], height, axis=0).astype(np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (101, 37), (16, 300)])
def test_a_mask_has_the_size_and_the_stem_of_its_picture(
    tmp_path: Path, bright: SegmentationNet, size: tuple[int, int]
) -> None:
    (images := tmp_path / "images").mkdir()
    Image.fromarray(halves(*size)).save(images / "some.thing.bmp")
    (written,) = predict(Segmenter(bright, (32, 32)), images, tmp_path / "new" / "masks")
    assert written == tmp_path / "new" / "masks" / "some.thing.png"
    pixels = np.asarray(Image.open(written))
    assert pixels.shape == size
    assert set(np.unique(pixels)) == {0, 255}
    wrong = (pixels > 0) != (halves(*size) > 100)
    assert wrong.mean() < 2 / size[1]  # at most where dark meets bright


def test_at_the_size_of_the_network_nothing_is_interpolated(tmp_path: Path, bright: SegmentationNet) -> None:
    Image.fromarray(halves(32, 40)).save(file := tmp_path / "a.png")
    image = read_image(file)
    logits = Segmenter(bright, (32, 40)).logits(image)
    np.testing.assert_array_equal(logits, (image[0] - np.float32(0.5)) / np.float32(0.1))


def test_a_colour_picture_suits_a_grey_network_and_a_grey_one_a_colour_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for channels, pixels in ((1, (20, 24, 3)), (3, (20, 24))):
        segmenter = Segmenter(SegmentationNet(channels, (16, 16)), (16, 16))
        Image.fromarray(np.full(pixels, 90, np.uint8)).save(file := tmp_path / "a.png")
        assert segmenter.logits(read_image(file)).shape == (20, 24)


def test_a_prediction_neither_depends_on_the_mode_of_the_network_nor_changes_it_by_its_statistics() -> None:
    torch.manual_seed(0)
    net = SegmentationNet(1, (32, 32)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    image = np.random.default_rng(0).random((1, 32, 32), np.float32)
    first = Segmenter(net, (32, 32)).logits(image)
    second = Segmenter(net.eval(), (32, 32)).logits(image)
    np.testing.assert_array_equal(first, second)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_higher_threshold_finds_less(bright: SegmentationNet) -> None:
    logits = np.linspace(-5, 5, 1001, dtype=np.float32)[None]
    shares = [Segmenter(bright, (16, 16), threshold).classes(logits).mean() for threshold in (0.1, 0.5, 0.9)]
    assert shares == sorted(shares, reverse=True)
    assert Segmenter(bright, (16, 16), 0.9).classes(logits).sum() == (1 / (1 + np.exp(-logits)) > 0.9).sum()


def test_what_was_written_reads_as_a_mask(tmp_path: Path, bright: SegmentationNet) -> None:
    (images := tmp_path / "images").mkdir()
    Image.fromarray(halves(32, 32)).save(images / "a.png")
    (written,) = predict(Segmenter(bright, (32, 32)), images, tmp_path / "masks")
    np.testing.assert_array_equal(read_mask(written), halves(32, 32) > 100)


def test_pictures_of_the_same_stem_are_refused_before_anything_is_written(
    tmp_path: Path, bright: SegmentationNet
) -> None:
    (images := tmp_path / "images").mkdir()
    for name in ("a.png", "a.bmp", "b.png"):
        Image.fromarray(halves(16, 16)).save(images / name)
    with pytest.raises(DataError, match=r"a\.bmp, a\.png"):
        predict(Segmenter(bright, (16, 16)), images, tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


def test_a_picture_that_cannot_be_read_is_named_after_the_others_are_done(
    tmp_path: Path, bright: SegmentationNet
) -> None:
    (images := tmp_path / "images").mkdir()
    (images / "a.png").write_text("no picture")
    Image.fromarray(halves(16, 16)).save(images / "b.png")
    with pytest.raises(DataError, match=r"(?s)1 of 2 pictures .*a\.png is not a picture"):
        predict(Segmenter(bright, (16, 16)), images, tmp_path / "masks")
    assert [file.name for file in (tmp_path / "masks").iterdir()] == ["b.png"]


@pytest.fixture
def pulled(tmp_path: Path) -> Path:
    """A folder as ``mltrain pull`` leaves it."""
    torch.manual_seed(0)
    (folder := tmp_path / "model").mkdir()
    save_file(SegmentationNet(1, (24, 32), 0.4, 0.2).state_dict(), folder / "model.safetensors")
    return folder


def test_a_pulled_model_predicts_as_it_did_in_training(pulled: Path) -> None:
    torch.manual_seed(0)
    trained = Segmenter(SegmentationNet(1, (24, 32), 0.4, 0.2), (24, 32))
    image = np.random.default_rng(0).random((1, 50, 60), np.float32)
    np.testing.assert_array_equal(Segmenter.load(pulled).logits(image), trained.logits(image))


def test_the_command_writes_what_the_function_writes(
    tmp_path: Path, pulled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images := tmp_path / "images").mkdir()
    Image.fromarray(halves(30, 20)).save(images / "a.png")
    assert main([str(pulled), str(images), str(tmp_path / "by_command"), "--threshold", "0.4"]) == 0
    assert "1 masks are in" in capsys.readouterr().out
    (written,) = predict(Segmenter.load(pulled, 0.4), images, tmp_path / "by_function")
    assert (tmp_path / "by_command" / "a.png").read_bytes() == written.read_bytes()


def test_the_command_says_what_is_wrong(tmp_path: Path, pulled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path), str(tmp_path / "masks")]) == 2
    assert "holds no weights" in capsys.readouterr().err
    assert main([str(pulled), str(tmp_path / "nowhere"), str(tmp_path / "masks")]) == 2
    assert "There is no folder" in capsys.readouterr().err


def test_a_picture_larger_than_the_training_crops_is_seen_at_its_own_scale() -> None:
    seen = []

    class Recorder(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images

    net = SegmentationNet(1, (32, 32), 0.0, 1.0, framing=Framing((32, 32)))
    net.unet = Recorder()
    image = np.random.default_rng(0).random((1, 50, 75), np.float32)
    np.testing.assert_allclose(Segmenter(net).logits(image), image[0], atol=1e-6)
    assert {tuple(images.shape[2:]) for images in seen} == {(32, 32)}


def test_a_picture_of_another_scale_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    image = np.zeros((1, 64, 64), np.float32)
    for frame, warned in (
        (Framing((16, 16), (16, 16), (0.25, 0.25)), False),
        (Framing((16, 16), (16, 16), (1.0, 1.0)), True),
        (Framing((16, 16)), False),
    ):
        caplog.clear()
        segmenter = Segmenter(SegmentationNet(1, (16, 16), framing=frame))
        segmenter.logits(image)
        segmenter.warn_of_other_scale([(64, 64)])
        assert ("64x64 is stretched to 16x16, by 0.25" in caplog.text) == warned


@pytest.mark.parametrize(
    ("values", "kind"),
    [((0, 5, 9), np.uint8), ((0, 300, 70), np.uint16), ((0, COLOUR + 0x804000, 255), np.uint8)],
    ids=str,
)
def test_a_mask_of_several_classes_reads_as_the_masks_of_the_training(
    tmp_path: Path, values: tuple[int, ...], kind: type
) -> None:
    classes = np.arange(12).reshape(3, 4) % 3
    write_mask(classes, tmp_path / "a.png", values)
    read = read_values(tmp_path / "a.png").values
    np.testing.assert_array_equal(read, np.array(values)[classes])
    assert np.asarray(Image.open(tmp_path / "a.png")).dtype == kind
