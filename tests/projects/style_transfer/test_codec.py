from pathlib import Path

import pytest
import torch

from mltrain.errors import ConfigError
from projects.style_transfer.codec import LinearCodec, Standardized, codec_in, psnr
from projects.style_transfer.folders import styles_in
from projects.style_transfer.pictures import random_crops, read_pictures
from projects.style_transfer.sample import sample_styles
from tests.support import small_codec


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.cat([random_crops(read_pictures(style.train, 128), 64, 16) for style in styles_in(*sample_styles())])


@pytest.fixture(scope="module")
def held_out() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.cat([random_crops(read_pictures(style.held_out, 128), 64, 8) for style in styles_in(*sample_styles())])


def fitted(crops: torch.Tensor, channels: int) -> Standardized:
    codec = Standardized(LinearCodec(4, channels))
    codec.fit(crops)
    return codec


def test_with_all_components_nothing_is_lost(crops: torch.Tensor) -> None:
    codec = fitted(crops, 48)
    assert (codec.decode(codec.encode(crops)) - crops).abs().max() < 1e-4


def test_more_components_restore_more_of_works_that_were_not_fitted(
    crops: torch.Tensor, held_out: torch.Tensor
) -> None:
    found = []
    for channels in (4, 12, 24):
        codec = fitted(crops, channels)
        found.append(psnr(held_out, codec.decode(codec.encode(held_out))))
    assert found[0] + 3 < found[1] < found[2] - 3
    assert found[1] > 29


def test_latents_have_mean_zero_and_variance_one_and_are_uncorrelated(crops: torch.Tensor) -> None:
    latents = fitted(crops, 12).encode(crops).movedim(1, 0).flatten(1)
    assert latents.mean(1).abs().max() < 1e-3
    assert torch.allclose(torch.cov(latents), torch.eye(12), atol=2e-2)


def test_the_codec_is_linear(crops: torch.Tensor) -> None:
    codec = fitted(crops, 12)
    a, b = codec.encode(crops[:4]), codec.encode(crops[4:8])
    middle = codec.encode((crops[:4] + crops[4:8]) / 2)
    assert torch.allclose(middle, (a + b) / 2, atol=1e-4)


def test_its_state_makes_another_one_the_same(crops: torch.Tensor) -> None:
    codec, other = fitted(crops, 12), Standardized(LinearCodec(4, 12))
    other.load_state_dict(codec.state_dict())
    assert torch.equal(codec.encode(crops), other.encode(crops))
    assert not any(parameter.requires_grad for parameter in codec.parameters())


def test_a_users_own_codec_is_standardized_like_the_others(crops: torch.Tensor) -> None:
    codec = Standardized(codec_in(Path(small_codec.__file__)))
    codec.fit(crops)
    latents = codec.encode(crops)
    assert latents.shape == (len(crops), 3, 32, 32)
    assert latents.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    assert codec.decode(latents).shape == crops.shape


@pytest.mark.parametrize("code", ["def codec(): return 3", "x = 1"])
def test_what_is_no_codec_is_refused(code: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(ConfigError, match="factor, channels, encode"):
        codec_in(tmp_path / "own.py")


def test_a_codec_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"codec_file=.*own\.py"):
        codec_in(tmp_path / "own.py")
