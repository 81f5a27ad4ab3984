"""Ranks that shard a model train and resume like one."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from tests.support import ranks
from tests.support.folders import flip
from tests.support.ranks import FSDP, TRAIN, assert_ended_alike
from tests.support.workplace import Workplace

STEMS = (("model", "safetensors"), ("state", "safetensors"), ("part", "json"))


@pytest.fixture(scope="module")
def undisturbed(place: Workplace) -> str:
    done = ranks.run(place, 2, *TRAIN, "undisturbed", *FSDP)
    assert [rank.code for rank in done] == [0, 0], done
    assert "missing" not in done[0].err, done[0].err
    return done[0].run_id


def checkpoints_of(place: Workplace, run_id: str) -> list[Path]:
    return list(place.folder.glob(f"mlruns/**/{run_id}/artifacts/checkpoints/step-*"))


def test_a_single_process_reads_what_several_have_written_in_pieces(
    place: Workplace, undisturbed: str, tmp_path: Path
) -> None:
    newest = max(checkpoints_of(place, undisturbed))
    names = {file.name for file in newest.iterdir()}
    assert {f"{stem}-r0000{rank}.{kind}" for rank in (0, 1) for stem, kind in STEMS} <= names
    assert "model-r" not in (newest / "manifest.json").read_text()  # which stays small, however many ranks there are
    verified = place.mltrain("verify", undisturbed)
    assert verified.code == 0, verified.out + verified.err
    pulled = place.mltrain("pull", undisturbed, "--to", str(tmp_path / "pulled"))
    assert pulled.code == 0, pulled.err
    weights = load_file(tmp_path / "pulled" / "model.safetensors")
    assert weights["0.weight"].shape == (16, 6)
    assert {"0.weight", "1.running_mean", "4.bias"} <= weights.keys()
    assert weights.keys() == place.weights(undisturbed)["model"].keys()
    evaluated = place.mltrain("evaluate", undisturbed)
    assert evaluated.code == 0, evaluated.err
    listed = place.mltrain("checkpoints", undisturbed)
    assert listed.code == 0, listed.err
    assert newest.name in listed.out


@pytest.mark.slow
def test_what_people_do_with_a_run_afterwards_needs_no_other_process(
    place: Workplace, undisturbed: str, tmp_path: Path
) -> None:
    """Compare, load in Python, fork, export, register, prune: each in one process, without torch.distributed."""
    expected = place.weights(undisturbed)["model"]
    code = (
        "import sys, mltrain, torch; weights = mltrain.load_best(sys.argv[1]); torch.save(dict(weights), sys.argv[2]); "
        "assert 'torch.distributed.checkpoint' not in sys.modules and not torch.distributed.is_initialized()"
    )
    best = tmp_path / "best.pt"
    loaded = subprocess.run(
        [sys.executable, "-c", code, undisturbed, str(best)], cwd=place.folder, env=place.environment, check=False
    )
    assert loaded.returncode == 0
    assert torch.load(best, weights_only=True).keys() == expected.keys()

    export = (f"model_save_path={tmp_path / 'exported'}", "export=full")
    forked = place.mltrain("train", "--fork-run", undisturbed, "epochs=3", *export)
    assert forked.code == 0, forked.err
    assert forked.run_id != undisturbed
    assert {step for step, _ in place.points(forked.run_id)["step/loss"]} == set(range(13, 19))
    again = ranks.run(place, 2, "train", "--fork-run", undisturbed, "epochs=2", *export)  # nothing is left to train
    assert [rank.code for rank in again] == [0, 0], again
    compared = place.mltrain("compare", undisturbed, forked.run_id, "--json")
    assert compared.code == 0, compared.err
    assert forked.run_id in compared.out

    registered = place.mltrain("pull", undisturbed, "--to", str(tmp_path / "model"), "--register", "sharded")
    assert registered.code == 0, registered.err
    assert [one.run_id for one in MlflowClient(place.uri).search_model_versions("name='sharded'")] == [undisturbed]

    before = place.checkpoint_names(undisturbed)
    pruned = place.mltrain("prune", undisturbed, "--keep", "Latest(1) | Best(1)", "--yes")
    assert pruned.code == 0, pruned.err
    left = place.checkpoint_names(undisturbed)
    assert set(left) < set(before)
    assert left[-1] == before[-1]
    assert {folder.name for folder in checkpoints_of(place, undisturbed)} == set(left)  # with all their pieces
    assert place.mltrain("verify", undisturbed).code == 0


@pytest.mark.faults
@pytest.mark.parametrize(("how", "codes"), [("kill_at=9 victim=1", [1, -signal.SIGKILL])])
def test_a_sharded_training_that_was_killed_ends_as_if_it_had_not_been(
    how: str, codes: list[int], place: Workplace, undisturbed: str
) -> None:
    command = (*TRAIN, "killed", *FSDP)
    stopped = ranks.run(place, 2, *command, *how.split())
    assert [rank.code for rank in stopped] == codes, stopped
    assert "Error: Another rank ended" in stopped[0].err  # and not a traceback out of FSDP2's backward
    newest = max(checkpoints_of(place, stopped[0].run_id))
    flip(newest / "state-r00001.safetensors")  # so all ranks go on from the one before
    again = ranks.run(place, 2, *command)
    assert [rank.code for rank in again] == [0, 0], again
    assert again[0].run_id == stopped[0].run_id
    assert f"{newest.name} is damaged" in again[0].err, again[0].err
    assert_ended_alike(place, again[0].run_id, undisturbed)


def test_sharded_processes_train_what_one_process_trains_and_any_number_goes_on(place: Workplace) -> None:
    plain = ("plain=true", "items=41", "epochs=3")
    alone = place.mltrain(*TRAIN, "alone", *plain)
    assert alone.code == 0, alone.err
    first = ranks.run(place, 2, *TRAIN, "moved", *plain, "strategy=fsdp", "signal_at=4", "victim=1")
    assert [rank.code for rank in first] == [75, 75], first
    second = place.mltrain(*TRAIN, "moved", *plain, "strategy=fsdp", "signal_at=9")
    assert second.code == 75, second.err
    third = ranks.run(place, 3, *TRAIN, "moved", *plain, "strategy=fsdp")
    assert [rank.code for rank in third] == [0, 0, 0], third
    moved, expected = (place.points(one.run_id)["step/loss"] for one in (third[0], alone))
    assert [step for step, _ in moved] == [step for step, _ in expected]
    assert [loss for _, loss in moved] == pytest.approx([loss for _, loss in expected], rel=1e-4)
    norms = [place.points(one.run_id)["step/grad_norm"] for one in (third[0], alone)]
    assert [norm for _, norm in norms[0]] == pytest.approx([norm for _, norm in norms[1]], rel=1e-4)


def test_on_ranks(place: Workplace) -> None:
    """Each check stands in ``tests/distributed/sharded_checks.py``; what two and four ranks save, three load."""
    for size, names in (
        (2, ("training", "refusals", "failing", "there_and_back")),
        (4, ("tensor_parallel",)),
        (3, ("resharding",)),
    ):
        folder = str(place.folder / "pieces")
        done = ranks.run(place, size, "--module", "tests.distributed.sharded_checks", *names, FOLDER=folder)
        assert [rank.code for rank in done] == [0] * size, "\n".join(rank.out + rank.err for rank in done)
