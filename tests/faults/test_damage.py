"""FAULTS A4, B5: whatever happens to the bytes of a checkpoint is found before they are used, and the one before serves.

``MLTRAIN_SWEEP=full`` flips ten thousand bits; ``MLTRAIN_SEED`` chooses which.
"""

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from mltrain.checkpoint.manifest import CheckpointId, Manifest, now
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import Context
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import DamagedCheckpoint, NoCheckpoint
from tests.support.equality import identical
from tests.support.folders import flip
from tests.support.runs import RUN_ID, FolderRun, state_at
from tests.support.workplace import Workplace

pytestmark = pytest.mark.faults

FLIPS = 10_000 if os.environ.get("MLTRAIN_SWEEP") == "full" else 400
SEED = int(os.environ.get("MLTRAIN_SEED", "1"))


def saved(run: FolderRun, *epochs: int) -> list[Path]:
    generator = torch.Generator().manual_seed(SEED)
    with run.manager() as manager:
        for epoch in epochs:
            more = {"optimizer": {"m": torch.randn(5, 7, generator=generator), "step": epoch, "betas": (0.9, 0.999)}}
            manager.save(state_at(epoch, **more), epoch=epoch, kind="epoch", extra={"params.json": b"{}"})
        assert manager.wait(60)
    return sorted((run.folder / "artifacts" / "checkpoints").iterdir())


class Reading:
    """What a fresh process finds."""

    def __init__(self, run: FolderRun) -> None:
        self.damaged: Counter[str] = Counter()
        self.store = CheckpointStore(RUN_ID, run.artifacts)
        self._reader = CheckpointReader(self.store, Context(now()), self._note)

    def _note(self, identity: CheckpointId, error: DamagedCheckpoint) -> None:
        self.damaged[identity.name] += 1

    def load(self) -> tuple[Manifest, dict[str, Any]]:
        return self._reader.load("latest")

    def wrong_files(self, name: str) -> list[str]:
        identity = CheckpointId.parse(name)
        assert identity is not None
        try:
            manifest = self.store.manifest(identity)
        except DamagedCheckpoint:
            return ["manifest.json"]
        return [problem.file for problem in self.store.problems(manifest)] if manifest is not None else []


def test_no_flipped_bit_is_silent_and_the_checkpoint_before_is_used(tmp_path: Path) -> None:
    run = FolderRun(tmp_path)
    before, newest = saved(run, 1, 2)
    state_before = Reading(run).store.load(Reading(run).store.manifests()[0])
    files = sorted(newest.iterdir())
    assert {file.name for file in files} >= {"model.safetensors", "state.safetensors", "state.json", "manifest.json"}
    chance = random.Random(SEED)
    flipped: Counter[str] = Counter()
    for _ in range(FLIPS):
        file = chance.choice(files)
        content = file.read_bytes()
        changed = bytearray(content)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        file.write_bytes(changed)
        reading = Reading(run)
        if file.name == "params.json":  # which is not part of the state, but is fetched and verified on a resume
            with pytest.raises(DamagedCheckpoint, match=file.name):
                reading.store.fetch(reading.store.manifests()[-1])
        else:
            manifest, parts = reading.load()
            assert manifest.name == before.name, f"a flipped bit of {file.name} was believed"
            assert reading.damaged == {newest.name: 1}
            assert identical(parts, state_before)
        assert reading.wrong_files(newest.name) == [file.name]
        flipped[file.name] += 1
        file.write_bytes(content)
    assert flipped.total() == FLIPS
    assert len(flipped) == len(files)
    assert Reading(run).load()[0].name == newest.name, "undone, it is the newest again"
    print(f"{FLIPS} flipped bits, 0 silent: {dict(flipped)}")


def test_a_manifest_cut_at_any_byte_is_no_commit_and_no_error(tmp_path: Path) -> None:
    run = FolderRun(tmp_path)
    before, newest = saved(run, 1, 2)
    content = (newest / "manifest.json").read_bytes()
    for length in range(len(content)):
        (newest / "manifest.json").write_bytes(content[:length])
        reading = Reading(run)
        assert reading.load()[0].name == before.name, f"cut after {length} bytes"
        assert reading.wrong_files(newest.name) == ["manifest.json"]
        assert reading.wrong_files(before.name) == []


def test_a_first_manifest_cut_at_any_byte_is_no_checkpoint_at_all(tmp_path: Path) -> None:
    run = FolderRun(tmp_path)
    (only,) = saved(run, 1)
    content = (only / "manifest.json").read_bytes()
    for length in range(0, len(content), 1 if FLIPS > 1000 else 37):
        (only / "manifest.json").write_bytes(content[:length])
        following = FolderRun(tmp_path, ordinal=2)  # whom nobody told that it had been committed
        manager = following.manager()
        assert manager.load_latest_checkpoint() is None
        manager.abandon()
        assert not [tag for tag in following.tags if tag.startswith("mltrain.damaged")]


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda page: page[:-1], lambda page: page + b"\0", lambda page: b"", lambda page: bytes(len(page))),
        lambda page: page[: len(page) // 2] + bytes(len(page) - len(page) // 2),
    ],
    ids=["truncated", "extended", "empty", "zeroed", "half zeroed"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json", "manifest.json"])
def test_when_none_is_left_that_is_an_error_and_not_a_fresh_start(name: str, damage: Any, tmp_path: Path) -> None:
    run = FolderRun(tmp_path)
    for folder in saved(run, 1, 2):
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
    following = run.next_attempt()
    manager = following.manager()
    with pytest.raises(NoCheckpoint, match="mltrain verify"):
        manager.load_latest_checkpoint()
    manager.abandon()
    assert len([tag for tag in following.tags if tag.startswith("mltrain.damaged")]) == 2


def test_a_training_resumes_from_the_newest_intact_one_says_so_and_ends_the_same(
    workplace: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    stopped = workplace.mltrain("train", "tiny.py", "signal_at=20")
    assert stopped.code == 75, stopped.err
    run_id = stopped.run_id
    names = [row["checkpoint"] for row in workplace.mltrain("checkpoints", run_id, "--json").json]
    assert len(names) == 4
    checkpoints = workplace.folder / "mlruns" / "0" / run_id / "artifacts" / "checkpoints"
    flip(checkpoints / names[3] / "state.safetensors")
    flip(checkpoints / names[2] / "manifest.json")
    verified = workplace.mltrain("verify", run_id, "--json")
    assert verified.code == 3
    assert set(verified.json["damaged"]) == set(names[2:])
    assert "state.safetensors" in str(verified.json["damaged"][names[3]])
    assert "manifest" in str(verified.json["damaged"][names[2]])
    assert verified.json["intact"] == names[:2]
    resumed = workplace.mltrain("train", "--resume-run", run_id, "signal_at=0")
    assert resumed.code == 0, resumed.err
    assert "Traceback" not in resumed.err
    assert all(f"{name} is damaged" in " ".join(resumed.err.split()) for name in names[2:])
    tags = MlflowClient(workplace.uri).get_run(run_id).data.tags
    assert {f"mltrain.damaged.{name}" for name in names[2:]} <= set(tags)
    assert tags["mltrain.resumed_from"] == names[1]
    reference, untouched = undisturbed
    assert identical(workplace.weights(run_id), reference.weights(untouched))
    assert workplace.points(run_id) == reference.points(untouched)


def test_a_training_whose_checkpoints_are_all_damaged_does_not_begin_anew(workplace: Workplace) -> None:
    first = workplace.mltrain("train", "tiny.py", "epochs=2")
    for file in (workplace.folder / "mlruns").rglob("model.safetensors"):
        flip(file)
    resumed = workplace.mltrain("train", "--resume-run", first.run_id, "epochs=3")
    assert resumed.code == 3, resumed.err
    assert f"mltrain verify {first.run_id}" in resumed.err
    assert "Traceback" not in resumed.err
