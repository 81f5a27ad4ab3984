"""This release reads the checkpoints of every earlier one. See ``tests/golden``."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import mltrain
from mltrain.checkpoint.codec import decode
from mltrain.checkpoint.manifest import FILE_NAME, Manifest
from mltrain.errors import DamagedCheckpoint
from mltrain.testing import MemorySaver, MemoryTracker, StopAt, differences
from tests.golden.contents import everything
from tests.support import tiny

RELEASES = sorted(found for found in (Path(__file__).parent / "golden").iterdir() if (found / "losses.json").is_file())


def checkpoint(release: Path, name: str) -> tuple[Manifest, dict[str, bytes]]:
    (folder,) = (release / name).iterdir()
    manifest = Manifest.from_json((folder / FILE_NAME).read_bytes(), name=folder.name)
    files = {file: (folder / file).read_bytes() for file in manifest.files}
    for file, content in files.items():
        assert hashlib.sha256(content).hexdigest() == manifest.files[file].sha256, file
    return manifest, files


def test_there_is_a_release() -> None:
    assert RELEASES


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_values_of_every_kind_come_back_as_they_were(release: Path) -> None:
    manifest, files = checkpoint(release, "everything")
    assert (manifest.step, manifest.epoch, manifest.metrics) == (7, 2, {"val/loss": 0.25})
    expected, got = everything(), decode(files)
    sparse, other = (parts["tensors"].pop("sparse") for parts in (expected, got))
    assert other.is_sparse
    assert other.to_dense().equal(sparse.to_dense())
    assert list(differences(expected, got)) == []
    assert got["tensors"]["one"].data_ptr() == got["tensors"]["the same"].data_ptr()


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_a_training_goes_on_from_the_middle_of_an_epoch(release: Path) -> None:
    manifest, files = checkpoint(release, "training")
    assert (manifest.step, manifest.kind) == (8, "interrupted")
    config, tracker = tiny.Config(), MemoryTracker()
    trainer = mltrain.Trainer(tiny.build(config), config, tracker, MemorySaver(), StopAt())
    trainer.restore(decode({name: content for name, content in files.items() if name.startswith(("model", "state"))}))
    for _ in trainer.steps():
        pass
    losses = {int(step): loss for step, loss in json.loads((release / "losses.json").read_text()).items()}
    # Not bit by bit: the release may have been trained with another version of torch.
    assert tracker.points["step/loss"] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_a_checkpoint_of_a_later_schema_is_refused_with_both_numbers(release: Path) -> None:
    (folder,) = (release / "training").iterdir()
    later = (folder / FILE_NAME).read_bytes().replace(b'"schema_version": 1', b'"schema_version": 2')
    with pytest.raises(DamagedCheckpoint, match="schema 2; this version of mltrain reads schema 1"):
        Manifest.from_json(later)


def test_the_values_stand_for_every_dtype_that_has_a_name_of_its_own() -> None:
    dtypes = {t.dtype for part in ("model", "tensors") for t in everything()[part].values()}
    assert {torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.complex64, torch.bool} <= dtypes
