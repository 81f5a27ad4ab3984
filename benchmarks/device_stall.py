"""Measures how long saves of a CUDA device stall training.

python -m benchmarks.device_stall [megabytes] [folder] [contestant ...]

As :mod:`benchmarks.stall`, on a device: each contestant trains the same transformer in a process of its own, on a local store
below the folder. Measured are

* copy: the state into page-locked memory that is kept, by hand: the least that a consistent checkpoint can cost. Everything
  else is given in units of it as well;
* stall: how long the training thread is held by a save that comes when the device is idle, the first one and later ones;
* held: how much longer the save and the steps up to the next one take than as many steps without it;
* host: page-locked memory at the end, and what of it is still held when the manager is closed.
"""

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.contestants import AsyncSave, Contestant, Late, Nothing, Ours, SaveAndLog

SAVES, STEPS_BETWEEN = 4, 10


class Pinned(AsyncSave):
    """async_save with a stager that keeps page-locked memory; ``overlaps`` says whether it stages under the next steps."""

    overlaps = False

    def __init__(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        super().__init__(folder, optimizer)
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=True,
                use_shared_memory=False,
                use_async_staging=self.overlaps,
                use_non_blocking_copy=True,
            )
        )
        self._optimizer = optimizer
        self._staged: Any = None
        if self.overlaps:
            optimizer.register_step_pre_hook(lambda *_: self._wait())

    def save(self, state: Mapping[str, Any], step: int) -> None:
        import torch.distributed.checkpoint as dcp

        self.finish()
        self._count += 1
        place = self._folder / "checkpoints" / str(step)
        answer: Any = dcp.async_save(dict(state), checkpoint_id=place, async_stager=self._stager)
        self._future = getattr(answer, "upload_completion", answer)
        self._staged = getattr(answer, "staging_completion", None)

    def _wait(self) -> None:
        """Wait for the staging before the parameters change. The documentation of ``async_save`` asks for it."""
        if self._staged is not None:
            self._staged.result()
            self._staged = None


class Overlapping(Pinned):
    """The same, staged under the next forward and backward."""

    overlaps = True


MAKERS: dict[str, Callable[[Path, torch.optim.Optimizer], Contestant]] = {
    "nothing": Nothing,
    "mltrain": Ours,
    "mltrain, late_copy": Late,
    "torch.save + log_artifact": SaveAndLog,
    "async_save": AsyncSave,
    "async_save, pinned": Pinned,
    "async_save, pinned, under the next step": Overlapping,
}


class Training:
    """A transformer whose state has about ``megabytes`` megabytes. A step takes some tens of milliseconds."""

    def __init__(self, megabytes: int) -> None:
        torch.manual_seed(0)
        layers = max(1, round(megabytes / 37.8))
        self.net = nn.Sequential(
            *(nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True) for _ in range(layers))
        ).cuda()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4, fused=True)
        self.batch = torch.randn(32, 128, 512, device="cuda")
        self.steps = 0

    def step(self) -> None:
        self.net(self.batch).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def state(self) -> dict[str, Any]:
        # The stager of async_save takes plain dictionaries only.
        return {"model": dict(self.net.state_dict()), "optimizer": self.optimizer.state_dict(), "step": self.steps}

    def tensors(self) -> list[torch.Tensor]:
        moments = [value for one in self.optimizer.state.values() for value in one.values()]
        return [*self.net.state_dict().values(), *moments]


def copy_seconds(training: Training) -> float:
    """Copy the state into page-locked memory by hand."""
    buffers = [torch.empty_like(tensor, device="cpu").pin_memory() for tensor in training.tensors()]
    seconds = []
    for _ in range(5):
        training.step()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for buffer, tensor in zip(buffers, training.tensors(), strict=True):
            buffer.copy_(tensor, non_blocking=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def steps_seconds(training: Training) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS_BETWEEN):
        training.step()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def resident() -> int:
    """Bytes of memory that this process holds."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def contest(name: str, megabytes: int, root: str | None) -> dict[str, Any]:
    """Train one contestant in this process; return the measurements."""
    training = Training(megabytes)
    for _ in range(3):
        training.step()
    state_bytes = sum(tensor.nbytes for tensor in training.tensors())
    stalls, spans = [], []
    with tempfile.TemporaryDirectory(dir=root) as place:
        contestant = MAKERS[name](Path(place), training.optimizer)
        before = resident()
        contestant.prepare(training.state())
        ordinary = statistics.median(steps_seconds(training) for _ in range(5))
        for _ in range(SAVES):
            torch.cuda.synchronize()
            began = time.perf_counter()
            contestant.save(training.state(), training.steps)
            stalls.append(time.perf_counter() - began)
            steps_seconds(training)
            spans.append(time.perf_counter() - began - ordinary)
            while contestant.busy():  # the next one does not wait for this one's file
                steps_seconds(training)
        contestant.finish()
        host = resident() - before
        contestant.stored()
        del contestant
        gc.collect()
        left = resident() - before
    copy = copy_seconds(training)
    return {
        "contestant": name,
        "state": state_bytes,
        "copy": copy,
        "first": stalls[0],
        "stall": statistics.median(stalls[1:]),
        "first_held": spans[0],
        "held": statistics.median(spans[1:]),
        "step": ordinary / STEPS_BETWEEN,
        "host": host / state_bytes,
        "left": left / state_bytes,
    }


def main(megabytes: int, root: str | None, names: Sequence[str]) -> None:
    rows = []
    for name in names:
        command = [sys.executable, "-m", "benchmarks.device_stall", "--contest", name, str(megabytes), root or ""]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr[-1500:]}", file=sys.stderr)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    copy = statistics.median(row["copy"] for row in rows)
    print(f"state {rows[0]['state'] / 1e6:.0f} MB on {torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"a step {statistics.median(row['step'] for row in rows) * 1e3:.1f} ms, a copy {copy * 1e3:.1f} ms")
    print(
        f"{'ms (copies)':42} {'first stall':>16} {'stall':>16} {'first held':>16} {'held':>16} {'host':>6} {'left':>6}"
    )
    for row in rows:
        four = [row[key] for key in ("first", "stall", "first_held", "held")]
        cells = " ".join(f"{f'{one * 1e3:.1f} ({one / copy:.2f})':>16}" for one in four)
        print(f"{row['contestant']:42} {cells} {row['host']:6.2f} {row['left']:6.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contest"]:
        print(json.dumps(contest(sys.argv[2], int(sys.argv[3]), sys.argv[4] or None)))
    else:
        main(int((sys.argv[1:2] or ["300"])[0]), (sys.argv[2:3] or [None])[0], sys.argv[3:] or list(MAKERS))
