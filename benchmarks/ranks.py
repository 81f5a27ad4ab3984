"""What a sharded checkpoint of two processes costs: bytes in the store, stall, and memory of those who read it alone.

python -m benchmarks.ranks [megabytes] [rounds]

This file is also the project that is trained, with ``--processes 2 strategy=fsdp``. Every few steps mltrain saves, and halfway
between ``torch.distributed.checkpoint.async_save`` saves the same state from the same processes to the same disk. A stall is
how long the training thread is held, after a barrier; of each save that of the slower rank counts. ``async_save`` has a gloo
group of its own, and waiting for its save before is not counted.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

import mltrain
from mltrain.config import Config as AnyConfig

READS = {
    "verify": ("-m", "mltrain", "verify", "{run}"),
    "pull": ("-m", "mltrain", "pull", "{run}", "--to", "pulled"),
    "load_best": ("-c", "import mltrain; mltrain.load_best('{run}')"),
}
"""What one process does with a run; its memory is compared with what the same takes of a tiny model."""
LAYERS, EVERY = 8, 6
STATE = 3 * 4  # bytes a parameter in float32: weight and two moments


class Config(AnyConfig):
    """What is trained, and where times are noted."""

    epochs: int = 1
    device: str = "cpu"
    num_threads: int | None = 1
    width: int = 512
    rounds: int = 4
    report: Path | None = None

    execution_fields: ClassVar[frozenset[str]] = AnyConfig.execution_fields | {"report"}


class Net(nn.Module):
    """Square layers, each a block of its own for FSDP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(LAYERS)])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            inputs = block(inputs).tanh()
        return inputs


class SavedByTorch:
    """A step that also saves with torch's own checkpoints. It does so halfway between those of mltrain."""

    def __init__(self, inner: mltrain.Supervised, optimizer: torch.optim.Optimizer, report: Path) -> None:
        self._inner, self._optimizer, self._report = inner, optimizer, report
        self._steps, self._pending, self._group = 0, None, None

    def parts(self) -> Mapping[str, Any]:
        return self._inner.parts()

    def __call__(self, batch: Any) -> Mapping[str, float]:
        result = self._inner(batch)
        self._steps += 1
        if self._steps % EVERY == EVERY // 2 and torch.distributed.is_initialized():
            self._save()
        return result

    def _save(self) -> None:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import get_state_dict

        self._group = self._group or torch.distributed.new_group(backend="gloo")
        pending: Any = self._pending
        if pending is not None:
            pending.result()
        began = begin()
        model, optimizer = get_state_dict(self._inner.model, self._optimizer)
        place = self._report / "torch" / str(self._steps)
        self._pending = dcp.async_save(
            {"model": model, "optimizer": optimizer}, checkpoint_id=place, process_group=self._group
        )
        note(self._report, "torch", time.perf_counter() - began)


def begin() -> float:
    torch.distributed.barrier()
    return time.perf_counter()


def note(report: Path, whose: str, seconds: float) -> None:
    with (report / f"{whose}-{os.environ['RANK']}").open("a") as file:
        print(seconds, file=file)


def build(config: Config) -> mltrain.Task:
    """Build the task; saves of mltrain are timed where they hold the training."""
    assert config.report is not None
    net = Net(config.width)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    data = torch.utils.data.TensorDataset(*torch.randn(2, 8 * EVERY * config.rounds, config.width))
    step = SavedByTorch(mltrain.Supervised(net, nn.MSELoss(), optimizer), optimizer, config.report)
    if "RANK" in os.environ:
        time_saves(config.report)
    return mltrain.Task(step, mltrain.ResumableLoader(data, 8), evaluate=lambda: {"val/loss": 0.0})


def time_saves(report: Path) -> None:
    from mltrain.distributed.saving import DistributedSaver

    save: Any = DistributedSaver.save

    def timed(saver: Any, *state: Any, **facts: Any) -> None:
        began = begin()
        save(saver, *state, **facts)
        note(report, "mltrain", time.perf_counter() - began)

    DistributedSaver.save = timed  # type: ignore[method-assign]


def train(report: Path, width: int, rounds: int, *words: str) -> tuple[str, list[int]]:
    """Train; return the run's id and the checkpoints' sizes in bytes."""
    report.mkdir()
    folder = report.parent
    settings = [
        f"width={width}",
        f"rounds={rounds}",
        f"save_every_steps={EVERY}",
        "retention=Latest(999)",
        f"report={report}",
    ]
    done = command(folder, "-m", "mltrain", "train", str(Path(__file__).resolve()), *settings, *words)
    run_id = next(line.partition("=")[2] for line in done[0].splitlines() if line.startswith("run_id="))
    return run_id, [size_of(one) for one in sorted(folder.glob(f"mlruns/**/{run_id}/artifacts/checkpoints/step-*"))]


def command(folder: Path, *words: str) -> tuple[str, int]:
    """Run Python; return its output and its peak memory in bytes."""
    started = subprocess.Popen([sys.executable, *words], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    out = started.stdout.read()
    _, status, used = os.wait4(started.pid, 0)
    started.returncode = os.waitstatus_to_exitcode(status)
    assert started.returncode == 0, (words, out)
    return out, used.ru_maxrss * 1024


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def stalls(report: Path, whose: str) -> list[float]:
    """Return the slower rank's stall of each save, in seconds. The first save is left out."""
    ranks = [[float(line) for line in (report / f"{whose}-{rank}").read_text().splitlines()] for rank in (0, 1)]
    return [max(pair) for pair in zip(*ranks, strict=True)][1:]


def main(megabytes: int = 200, rounds: int = 12) -> None:
    width = int((megabytes * 1e6 / STATE / LAYERS) ** 0.5)
    state = STATE * LAYERS * (width * width + width)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "MLTRAIN_HOME": str(folder / "home")}
        os.environ |= {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        small, _ = train(folder / "small", 16, 2)
        _, alone = train(folder / "alone", width, 2)
        report = folder / "two"
        run, two = train(report, width, rounds, "--processes", "2", "strategy=fsdp")
        theirs = [size_of(one) for one in (report / "torch").iterdir()]
        print(f"state {state / 1e6:.0f} MB; load average {os.getloadavg()[0]:.1f}")
        for what, sizes in (("one process", alone), ("two processes", two), ("async_save", theirs)):
            print(f"{what}: {statistics.median(sizes) / 1e6:.3f} MB a checkpoint")
        for whose in ("mltrain", "torch"):
            found = sorted(1000 * seconds for seconds in stalls(report, whose))
            print(
                f"stall {whose}: {statistics.median(found):.0f} ms ({found[0]:.0f} … {found[-1]:.0f}), {len(found)} saves"
            )
        for what, words in READS.items():
            most, least = (command(folder, *(one.format(run=each) for one in words))[1] for each in (run, small))
            print(f"{what}: {(most - least) / (state / 3):.2f} × the weights")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
