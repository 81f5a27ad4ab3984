from pathlib import Path

import pytest
import torch

from mltrain.errors import DataError
from projects.style_transfer.gallery import Gallery, pair_name
from projects.style_transfer.metrics import Judgement
from projects.style_transfer.pictures import BRIGHTNESS, read_picture
from projects.style_transfer.project import restored
from projects.style_transfer.routes import NoiseRoute
from projects.style_transfer.translator import KnownStyles, Translator
from tests.projects.style_transfer.conftest import built, quick, train


@pytest.fixture
def translator(styles: Path) -> Translator:
    config = quick(image_dir=styles, epochs=3)
    task = built(config)
    train(task, 3)
    parts = {**task.step.parts(), **task.state}
    return restored(config, {name: part.state_dict() for name, part in parts.items()})


@pytest.mark.parametrize("size", [(33, 70), (16, 16), (48, 31)])
def test_the_output_has_the_size_of_the_input_whatever_it_is(translator: Translator, size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size)
    both = translator.translate(images, 0, [0, 1])
    assert [made.shape for made in both] == [images.shape] * 2
    assert all(float(made.min()) >= 0 and float(made.max()) <= 1 for made in both)


def test_translating_twice_gives_the_same_picture(translator: Translator) -> None:
    images = torch.rand(1, 3, 32, 32)
    (one,), (other,) = (translator.translate(images, 0, [1]) for _ in range(2))
    assert torch.equal(one, other)


def test_a_style_is_found_by_its_name(translator: Translator) -> None:
    assert translator.index("stripes") == 1
    with pytest.raises(DataError, match=r"'stripe'.*Did you mean 'stripes'.*dots, stripes"):
        translator.index("stripe")


def test_a_translator_comes_back_from_a_checkpoint_alone(styles: Path) -> None:
    config = quick(image_dir=styles, epochs=2)
    task = built(config)
    train(task, 2)
    parts = {name: part.state_dict() for name, part in {**task.step.parts(), **task.state}.items()}
    for file in styles.rglob("*.png"):
        file.unlink()
    again = restored(config, parts)
    images = torch.rand(1, 3, 32, 32)
    assert isinstance(task.evaluate, Judgement)
    (expected,) = task.evaluate._translator.translate(images, 0, [1])
    (got,) = again.translate(images, 0, [1])
    assert torch.equal(got, expected)


def test_a_checkpoint_of_other_styles_is_not_taken() -> None:
    names = KnownStyles(["dots", "stripes"])
    names.load_state_dict({"names": ["dots", "stripes"]})
    with pytest.raises(ValueError, match="styles cats, dogs; here are dots, stripes"):
        names.load_state_dict({"names": ["cats", "dogs"]})


def test_a_checkpoint_without_maps_goes_through_noise_as_it_was_trained(styles: Path) -> None:
    config = quick(image_dir=styles, epochs=2, route="noise", anchor_epochs=0)
    task = built(config)
    train(task, 2)
    parts = {name: part.state_dict() for name, part in {**task.step.parts(), **task.state}.items()}
    assert parts["styles"] == {"names": ["dots", "stripes"]}  # as checkpoints were before there were maps
    again = restored(quick(image_dir=styles, epochs=2), parts)
    images, style = torch.rand(1, 3, 32, 32), torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        latents = NoiseRoute(again.flow).translate(again.codec.encode(images), style, style + 1)
        (made,) = again.translate(images, 0, [1])
        assert torch.equal(made, again.codec.decode(latents).clamp(0, 1))

    resumed = built(quick(image_dir=styles, epochs=2, anchor_epochs=0))
    for name, part in {**resumed.step.parts(), **resumed.state}.items():
        if name != "scheduler":
            part.load_state_dict(parts[name])
    assert all("flow" in step for step in train(resumed, 1))


def test_what_the_codec_loses_of_the_brightness_is_kept(translator: Translator) -> None:
    images = torch.rand(1, 1, 32, 32).expand(-1, 3, -1, -1) * 0.2 + 0.4  # much finer than the codec restores
    (same,) = translator.translate(images, 0, [0])
    changes = [made - images for made in (same, translator.codec.decode(translator.codec.encode(images)))]
    kept, lost = (float(torch.einsum("bchw,c->bhw", one, torch.tensor(BRIGHTNESS)).abs().mean()) for one in changes)
    assert kept < 1e-3
    assert lost > 0.02


def test_the_style_of_a_picture_is_guessed(translator: Translator, styles: Path) -> None:
    for style in (0, 1):
        files = sorted((styles / translator.styles[style]).iterdir())
        assert [translator.likeliest_style(read_picture(file, 40) / 255) for file in files] == [style] * len(files)


def test_the_gallery_shows_every_style_in_every_other_at_full_size(translator: Translator, tmp_path: Path) -> None:
    pictures = [torch.randint(256, (3, 40, 60), dtype=torch.uint8), torch.randint(256, (3, 50, 40), dtype=torch.uint8)]
    gallery = Gallery(translator, pictures)
    shown = gallery()
    assert shown.keys() == {"grid", "inference/dots_to_stripes", "inference/stripes_to_dots"}
    assert shown["inference/dots_to_stripes"].shape == (40, 60, 3)
    assert shown["inference/stripes_to_dots"].shape == (50, 40, 3)
    assert shown["grid"].std() > 0
    gallery.write(folder := tmp_path / "shown")
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.*"))
    assert files == ["grid.png", "inference/dots_to_stripes.jpg", "inference/stripes_to_dots.jpg"]


def test_names_of_pairs_are_fit_for_files_and_never_the_same() -> None:
    assert pair_name(["Van Gogh", "photo"], 0, 1) == "Van_Gogh_to_photo"
    assert pair_name(["日本", "中国"], 0, 1) == "0____to_1___"
