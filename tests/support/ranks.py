"""Commands on several ranks, started as by a launcher."""

import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.equality import identical
from tests.support.servers import free_port
from tests.support.workplace import Done, Started, Workplace

TRAIN = ("train", "ranked.py", "--run-key")
FSDP = ("strategy=fsdp", "epochs=2", "save_every_steps=2")


def torchrun(size: int, *options: str) -> list[str]:
    """Return torchrun's command for ``size`` processes on this machine."""
    module = [sys.executable, "-m", "torch.distributed.run"]
    return [*module, "--standalone", "--nproc-per-node", str(size), *options]


def start(
    workplace: Workplace, size: int, *words: str | Path, others: Mapping[str, str] | None = None, **environment: str
) -> list[Started]:
    """Start a command on every rank. Only rank 0 is given a tracking server that exists; ``others`` is for all but it."""
    port = str(free_port())
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "MLTRAIN_PEER_SECONDS": "60"}
    nowhere = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLTRAIN_HOME": str(workplace.folder / "unused")}
    return [
        workplace.start(
            *words, **{**shared, **({**nowhere, **(others or {})} if rank else {}), "RANK": str(rank), **environment}
        )
        for rank in range(size)
    ]


def run(
    workplace: Workplace, size: int, *words: str | Path, others: Mapping[str, str] | None = None, **environment: str
) -> list[Done]:
    """Run a command on every rank; return the results."""
    return [started.wait(200) for started in start(workplace, size, *words, others=others, **environment)]


def assert_ended_alike(workplace: Workplace, run_id: str, other: str) -> None:
    """Compare two runs' newest checkpoints and points bit by bit."""
    parts, others = workplace.weights(run_id), workplace.weights(other)
    assert [name for name in others if not identical(parts[name], others[name])] == []
    assert workplace.points(run_id) == workplace.points(other)
