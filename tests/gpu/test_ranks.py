"""Ranks on one CUDA device: a single one over NCCL, two over gloo."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ranks
from tests.support.equality import identical
from tests.support.servers import free_port
from tests.support.workplace import Done, Workplace

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parent.parent.parent
TRAIN = ("train", "ranked.py", "device=cuda", "epochs=2", "save_every_steps=2", "--run-key")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, fork_server: Any) -> Workplace:
    workplace = Workplace(tmp_path_factory.mktemp("ranks") / "here", fork_server)
    (workplace.folder / "ranked.py").write_bytes(Path(ranks.__file__).with_name("ranked.py").read_bytes())
    return workplace


def run(place: Workplace, backend: str, size: int, *words: str) -> list[Done]:
    """Run a command on every rank; return the results."""
    shared = {
        **place.environment,
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "MLTRAIN_PEER_SECONDS": "60",
        "LOCAL_RANK": "0",
        "PYTHONPATH": f"{ROOT}:{place.environment.get('PYTHONPATH', '')}",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.launch", backend, *words],
            cwd=place.folder,
            env={**shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=200) for process in started]
    return [Done(process.returncode, out, err) for process, (out, err) in zip(started, said, strict=True)]


@pytest.mark.parametrize(
    ("backend", "size", "strategy"),
    [("nccl", 1, "ddp"), ("nccl", 1, "fsdp"), ("gloo", 2, "ddp")],  # FSDP2 over gloo crashes torch 2.11 on a device
)
def test_ranks_on_a_device_are_stopped_and_end_as_if_they_had_not_been(
    backend: str, size: int, strategy: str, place: Workplace
) -> None:
    name = f"{backend}-{strategy}"
    whole = run(place, backend, size, *TRAIN, f"{name}-whole", f"strategy={strategy}")
    assert [one.code for one in whole] == [0] * size, whole
    command = (*TRAIN, f"{name}-stopped", f"strategy={strategy}")
    stopped = run(place, backend, size, *command, "signal_at=5", f"victim={size - 1}")
    assert [one.code for one in stopped] == [75] * size, stopped
    again = run(place, backend, size, *command)
    assert [one.code for one in again] == [0] * size, again
    assert again[0].run_id == stopped[0].run_id
    parts, others = place.weights(again[0].run_id), place.weights(whole[0].run_id)
    assert [name for name in others if not identical(parts[name], others[name])] == []
    newest = max(place.folder.glob(f"mlruns/**/{again[0].run_id}/artifacts/checkpoints/step-*"))
    assert (newest / "model-r00000.safetensors").exists() == (strategy == "fsdp")
    alone = place.mltrain("evaluate", again[0].run_id)
    assert alone.code == 0, alone.err


def test_a_rank_that_fails_ends_and_is_resumed(place: Workplace) -> None:
    command = (*TRAIN, "nccl-failed", "strategy=fsdp")
    (failed,) = run(place, "nccl", 1, *command, "raise_at=4")
    assert failed.code == 1, failed.err
    (again,) = run(place, "nccl", 1, *command)
    assert again.code == 0, again.err
