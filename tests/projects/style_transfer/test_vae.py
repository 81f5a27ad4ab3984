import sys
from pathlib import Path

import pytest
import torch

from mltrain.errors import ConfigError, DataError, UsageError
from projects.style_transfer.project import build, restored
from projects.style_transfer.vae import VaeCodec
from tests.projects.style_transfer.conftest import built, quick, train


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of diffusers with a model of few weights."""
    return stand_in(tmp_path_factory.mktemp("vae"), seed=0)


def stand_in(folder: Path, seed: int) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
    ).save_pretrained(folder)
    return folder


def test_images_go_to_latents_and_back(vae: Path) -> None:
    codec = VaeCodec(vae)
    images = torch.rand(2, 3, 32, 32)
    assert (codec.factor, codec.channels) == (2, 4)
    assert codec.encode(images).shape == (2, 4, 16, 16)
    assert codec.decode(codec.encode(images)).shape == images.shape
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(vae, low_cpu_mem_usage=False)
    with torch.no_grad():
        expected = model.encode(images * 2 - 1).latent_dist.mean
    assert torch.allclose(codec.encode(images), expected, atol=1e-5)


def test_a_flow_is_trained_on_its_latents_and_comes_back_with_the_folder(vae: Path, styles: Path) -> None:
    config = quick(image_dir=styles, codec="vae", codec_model=vae)
    task = built(config)
    assert all(step["loss"] > 0 for step in train(task, 1))
    parts = {name: part.state_dict() for name, part in {**task.step.parts(), **task.state}.items()}
    assert sum(value.numel() for value in parts["codec"].values()) < 100  # mean, deviation and digest, no weights
    images = torch.rand(1, 3, 32, 32)
    (made,) = restored(config, parts).translate(images, 0, [1])
    assert made.shape == images.shape


def test_other_weights_are_refused(vae: Path, styles: Path, tmp_path: Path) -> None:
    task = built(quick(image_dir=styles, codec="vae", codec_model=vae))
    parts = {name: part.state_dict() for name, part in {**task.step.parts(), **task.state}.items()}
    other = quick(image_dir=styles, codec="vae", codec_model=stand_in(tmp_path / "other", seed=1))
    with pytest.raises(DataError, match="trained with the autoencoder of SHA-256"):
        restored(other, parts)


def test_the_folder_of_a_whole_pipeline_will_do(tmp_path: Path) -> None:
    stand_in(tmp_path / "vae", seed=0)
    assert VaeCodec(tmp_path).channels == 4


def test_a_folder_without_an_autoencoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(ConfigError, match=r"holds no autoencoder.*config\.json.*got model\.ckpt"):
        VaeCodec(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    stand_in(tmp_path, seed=0)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match="cannot be loaded"):
        VaeCodec(tmp_path)


def test_without_diffusers_the_error_names_what_to_install(vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"pip install 'mltrain\[vae\]'"):
        VaeCodec(vae)


def test_crops_that_its_levels_do_not_divide_are_refused(styles: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch.nn as nn, torch.nn.functional as F\n"
        "class Coarse(nn.Module):\n"
        "    factor, channels = 8, 3\n"
        "    def encode(self, images): return F.avg_pool2d(images, 8)\n"
        "    def decode(self, latents): return F.interpolate(latents, scale_factor=8)\n"
        "def codec(): return Coarse()\n"
    )
    with pytest.raises(ConfigError, match=r"image_size=48 does not suit this codec\. Expected a multiple of 32"):
        build(quick(image_dir=styles, image_size=48, codec="own", codec_file=tmp_path / "own.py"))
