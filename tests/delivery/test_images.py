"""Pictures in MLflow's format, and the note of a run."""

import string
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from mltrain.delivery.images import PREVIEW_PIXELS, as_image, save_for_ui, ui_identity, ui_stem
from mltrain.errors import UsageError
from mltrain.store.artifacts import validated

UUID = uuid.UUID(int=7)


names = st.text(string.ascii_letters + string.digits + "_./ -", min_size=1, max_size=130)


def test_pictures_of_every_kind_are_pictures() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    colour = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([1, 2])
    assert np.array_equal(np.asarray(as_image(grey)), grey)
    assert np.array_equal(np.asarray(as_image(colour[:, ::-1])), colour[:, ::-1])
    assert (as_image(figure).size, as_image(figure).mode) == ((100, 50), "RGB")
    assert as_image(Image.fromarray(grey)).mode == "L"


def float_pixels() -> Any:
    return np.array([[[0.0, 0.5, 1.0], [1.5, -1.0, np.nan]]])


EXPECTED = [[[0, 128, 255], [255, 0, 0]]]


@pytest.mark.parametrize(
    "picture",
    [
        float_pixels(),
        float_pixels().astype(np.float16),
        float_pixels()[None],
        np.moveaxis(float_pixels(), 2, 0).astype(np.float32),
        torch.tensor(float_pixels()).permute(2, 0, 1).requires_grad_(),
        torch.tensor(float_pixels()).permute(2, 0, 1).bfloat16(),
        np.array(EXPECTED),
        np.array(EXPECTED, dtype=np.uint16) * 257,
        np.array(EXPECTED, dtype=float),
        torch.tensor(EXPECTED, dtype=torch.uint8).permute(2, 0, 1)[None],
        np.dstack([float_pixels(), [[0.5, 0.5]]]),
    ],
    ids=lambda picture: f"{type(picture).__name__}-{picture.dtype}-{tuple(picture.shape)}",
)
def test_the_pictures_of_other_libraries_are_pictures(picture: Any) -> None:
    assert np.asarray(as_image(picture)).tolist() == EXPECTED


@pytest.mark.parametrize(
    "grey",
    [
        np.array([[0.0, 0.5, 1.0]]),
        np.array([[[0.0], [0.5], [1.0]]]),
        torch.tensor([[[0.0, 0.5, 1.0]]]),
        torch.tensor([[[[0.0, 0.5, 1.0]]]]),
    ],
    ids=lambda picture: f"{type(picture).__name__}-{tuple(picture.shape)}",
)
def test_a_single_channel_is_grey(grey: Any) -> None:
    assert (as_image(grey).mode, np.asarray(as_image(grey)).tolist()) == ("L", [[0, 128, 255]])


def test_a_mask_is_black_and_white_and_a_file_is_read(tmp_path: Path) -> None:
    mask = np.array([[True, False]])
    as_image(mask).save(tmp_path / "mask.png")
    for same in (mask, torch.tensor(mask), tmp_path / "mask.png", str(tmp_path / "mask.png")):
        assert np.asarray(as_image(same)).tolist() == [[255, 0]]


def test_if_both_layouts_are_possible_channels_are_first_in_a_tensor_and_last_in_an_array() -> None:
    square = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert np.array_equal(np.asarray(as_image(square)), square)
    assert np.array_equal(np.asarray(as_image(torch.tensor(square))), np.moveaxis(square, 0, 2))
    assert np.array_equal(np.asarray(as_image(torch.zeros(2, 5, 3))), np.zeros((2, 5, 3)))


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "CMYK", "I;16", "LA"])
def test_a_picture_of_another_mode_becomes_colours(mode: str) -> None:
    assert as_image(Image.new(mode, (2, 3))).mode == "RGB"


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 4, 2), dtype=np.uint8),
        np.zeros((2, 2, 3, 3), dtype=np.uint8),
        np.zeros((0, 3), dtype=np.uint8),
        np.zeros(4, dtype=np.uint8),
        np.full((2, 3), 256),
        np.full((2, 3), -1),
        np.zeros((2, 3), dtype=complex),
        np.array([["a"]]),
        torch.zeros(2, 2, 3, 3),
        None,
        [[1, 2]],
    ],
    ids=lambda wrong: f"{type(wrong).__name__}{getattr(wrong, 'shape', '')}",
)
def test_what_is_no_picture_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="Expected a PIL image"):
        as_image(wrong)


@settings(max_examples=300)
@given(names, st.integers(0, 10**9 - 1))
def test_the_name_of_a_file_tells_which_picture_it_is(name: str, step: int) -> None:
    try:
        stem = ui_stem(name, step, 1_780_000_000_000, UUID)
    except UsageError:
        return
    assert ui_identity(f"{stem}.png") == (name, step)
    assert ui_identity(f"{stem}+compressed.webp") is None


@settings(max_examples=300)
@given(names, st.integers(0, 10**9 - 1))
def test_a_name_that_is_accepted_makes_files_that_can_be_uploaded(name: str, step: int) -> None:
    try:
        stem = ui_stem(name, step, 1_780_000_000_000, UUID)
    except UsageError:
        return
    for file in (f"{stem}.png", f"{stem}+compressed.webp"):
        assert validated(file) == file
        assert validated(name) == name
        assert "/" not in file


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../x",
        "/x",
        ".x",
        "-x",
        " x",
        "x" * 101,
        "a+step+1",
        "a\nb",
        "a\n",
        "a//b",
        "a/",
        "a/../b",
        "a/.b",
        "a/ b",
        "<b>",
        "ä",
        "a~b",
    ],
)
def test_a_name_that_no_file_could_have_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a picture"):
        ui_stem(name, 1, 1, UUID)


def test_mlflow_itself_names_a_picture_like_this(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from tests.support.database import fresh_database

    client = MlflowClient(fresh_database(tmp_path / "mlflow.db", tmp_path / "artifacts"))
    run = client.create_run("0")
    client.log_image(run.info.run_id, Image.new("RGB", (3, 2)), key="val/masks", step=5)
    theirs = sorted(file.path.removeprefix("images/") for file in client.list_artifacts(run.info.run_id, "images"))
    stem = theirs[0].removesuffix("+compressed.webp").removesuffix(".png")
    assert ui_identity(f"{stem}.png") == ("val/masks", 5)
    identifier, timestamp = stem.rpartition("+")[2], stem.split("+timestamp+")[1].partition("+")[0]
    ours = ui_stem("val/masks", 5, int(timestamp), identifier)
    assert theirs == sorted([f"{ours}.png", f"{ours}+compressed.webp"])


@pytest.mark.parametrize(
    "name", ["", "x.png", "a+step+x+timestamp+1+0.png", "images/a.png", "a+step+1+timestamp+2.png"]
)
def test_other_files_are_no_pictures_of_a_step(name: str) -> None:
    assert ui_identity(name) is None


def test_a_picture_is_saved_whole_and_as_a_smaller_preview(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (900, 1200, 3), dtype=np.uint8))
    full, small = save_for_ui(image, tmp_path, "stem")
    assert (full.name, small.name) == ("stem.png", "stem+compressed.webp")
    with Image.open(full) as there:
        assert np.array_equal(np.asarray(there), np.asarray(image))
    with Image.open(small) as there:
        assert max(there.size) == PREVIEW_PIXELS
    assert image.size == (1200, 900)
