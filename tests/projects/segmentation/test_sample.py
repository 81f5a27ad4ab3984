import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from projects.segmentation import sample
from tests.projects.segmentation.conftest import survey


@pytest.fixture(scope="module")
def mni152(tmp_path_factory: pytest.TempPathFactory) -> sample.SampleFolders:
    def refuse(*_: object) -> None:
        raise AssertionError("sample data must not need a network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return sample.mni152(tmp_path_factory.mktemp("mni152"))


def test_the_brain_is_75_slices_to_train_on_and_26_held_out(mni152: sample.SampleFolders) -> None:
    train, val = survey(mni152.train), survey(mni152.val)
    assert not train.problems
    assert not val.problems
    assert (len(train.samples), len(val.samples)) == (75, 26)
    assert {(s.height, s.width, s.channels) for s in train.samples + val.samples} == {(112, 96, 1)}


def test_held_out_slices_are_more_than_five_millimetres_from_any_that_is_trained_on() -> None:
    train = [z for block in sample.TRAIN_BLOCKS for z in block]
    val = [z for block in sample.VAL_BLOCKS for z in block]
    assert min(abs(a - b) for a in train for b in val) > 5


def test_white_matter_is_bright_and_within_the_brain(mni152: sample.SampleFolders) -> None:
    file = "axial_086.png"
    image = np.asarray(Image.open(mni152.train.images / file))
    mask = np.asarray(Image.open(mni152.train.masks / file))
    assert set(np.unique(mask)) == {0, 255}
    assert 0.1 < (mask > 0).mean() < 0.3
    brain = image > 50
    assert brain[mask > 0].all()
    assert image[mask > 0].mean() > image[brain & (mask == 0)].mean() + 20


def test_anterior_is_at_the_top(mni152: sample.SampleFolders) -> None:
    cerebellum = np.asarray(Image.open(mni152.train.images / "axial_030.png")) > 50
    rows = np.flatnonzero(cerebellum.any(axis=1))
    # So low in the head, the bulk of the brain is the cerebellum, which lies behind.
    assert cerebellum[56:].sum() > cerebellum[:56].sum()
    assert rows.max() > 80


def test_blobs_are_the_same_in_every_cache(tmp_path: Path) -> None:
    one, other = sample.blobs(tmp_path / "one"), sample.blobs(tmp_path / "other")
    files = sorted(one.train.images.iterdir())
    assert len(files) == 64
    for file in files:
        assert file.read_bytes() == (other.train.images / file.name).read_bytes()
    assert len(survey(one.val).samples) == 16
