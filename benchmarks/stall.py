"""What a checkpoint costs the training: mltrain, torch.save + log_artifact, torch.distributed.checkpoint.async_save.

python benchmarks/stall.py [megabytes] [rounds]

Every contestant trains the same transformer (weights and both moments of AdamW are the state) in a process of its own,
in turn, with one torch thread and a store on the local disk. Measured are

* stall: how long the training thread is held by a save, over a memcpy of the state into kept buffers in the same process;
* stall and step: the same with what the step after it takes longer than others, where copying goes on under it;
* slow-down: steps while a checkpoint is being written over steps while none is, by the clock and by the CPU time of the
  training thread (which leaves out what other programs take);
* memory: the peak of the process over that of the same run in which nothing is saved, in units of the state;
* bytes in the store for each checkpoint, in units of the state.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

CONTESTANTS = ("nothing", "mltrain", "mltrain, late copy", "torch.save + log_artifact", "async_save")
SAVES, STEPS_BETWEEN = 6, 14


class Contestant(Protocol):
    """A way of saving."""

    def prepare(self, state: Mapping[str, Any]) -> None: ...

    def save(self, state: Mapping[str, Any], step: int) -> None: ...

    def busy(self) -> bool: ...

    def finish(self) -> None: ...

    def stored(self) -> float: ...


class Ours:
    """A manager on a run of a local tracking store."""

    def __init__(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        import mlflow

        from mltrain import CheckpointManager

        os.environ["MLTRAIN_HOME"] = str(folder / "home")
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.create_experiment("stall", artifact_location=str(folder / "artifacts"))
        os.environ["MLFLOW_EXPERIMENT_NAME"] = "stall"
        self._manager = CheckpointManager(max_to_keep=SAVES + 1)

    def prepare(self, state: Mapping[str, Any]) -> None:
        self._manager.prepare(state)

    def save(self, state: Mapping[str, Any], step: int) -> None:
        self._manager.save(state, step=step)

    def busy(self) -> bool:
        return not self._manager.committer.idle

    def finish(self) -> None:
        assert self._manager.wait(600)

    def stored(self) -> float:
        manifests = self._manager.checkpoints()
        folders = [self._manager.run.artifacts.local_root / "checkpoints" / m.name for m in manifests]  # type: ignore[operator]
        self._manager.close()
        return sum(size_of(folder) for folder in folders) / len(folders)


class Nothing(Ours):
    """The same run, in which nothing is saved."""

    def prepare(self, state: Mapping[str, Any]) -> None: ...

    def save(self, state: Mapping[str, Any], step: int) -> None: ...

    def stored(self) -> float:
        self._manager.close()
        return 0.0


class Late(Ours):
    """The same, copied under the next forward and backward."""

    def __init__(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        from mltrain.checkpoint.late_copy import LateCopy

        super().__init__(folder, optimizer)
        self._late = LateCopy([optimizer])

    def save(self, state: Mapping[str, Any], step: int) -> None:
        self._manager.save(self._late.allow(state), step=step)


class SaveAndLog:
    """What a loop with MLflow does: torch.save into a temporary file, log_artifact."""

    def __init__(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        import mlflow

        self._mlflow, self._folder, self._count = mlflow, folder, 0
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        experiment = mlflow.create_experiment("stall", artifact_location=str(folder / "artifacts"))
        mlflow.start_run(experiment_id=experiment)

    def prepare(self, state: Mapping[str, Any]) -> None: ...

    def save(self, state: Mapping[str, Any], step: int) -> None:
        file = self._folder / "checkpoint.pt"
        torch.save(state, file)
        self._mlflow.log_artifact(str(file), f"checkpoints/{step}")
        file.unlink()
        self._count += 1

    def busy(self) -> bool:
        return False

    def finish(self) -> None:
        self._mlflow.end_run()

    def stored(self) -> float:
        return size_of(self._folder / "artifacts") / self._count


class AsyncSave:
    """torch.distributed.checkpoint.async_save on one rank, into local files."""

    def __init__(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        import torch.distributed as dist

        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
        self._folder, self._count = folder, 0
        self._future: Any = None

    def prepare(self, state: Mapping[str, Any]) -> None: ...

    def save(self, state: Mapping[str, Any], step: int) -> None:
        import torch.distributed.checkpoint as dcp

        self.finish()
        self._count += 1
        self._future = dcp.async_save(dict(state), checkpoint_id=self._folder / "checkpoints" / str(step))

    def busy(self) -> bool:
        return self._future is not None and not self._future.done()

    def finish(self) -> None:
        if self._future is not None:
            self._future.result()

    def stored(self) -> float:
        return size_of(self._folder / "checkpoints") / self._count


MAKERS: dict[str, Callable[[Path, torch.optim.Optimizer], Contestant]] = dict(
    zip(CONTESTANTS, (Nothing, Ours, Late, SaveAndLog, AsyncSave), strict=True)
)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class Training:
    """A transformer whose state has about so many megabytes."""

    def __init__(self, megabytes: int) -> None:
        torch.manual_seed(0)
        layers = max(1, round(megabytes / 37.8))
        self.net = nn.Sequential(
            *(nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True) for _ in range(layers))
        )
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4)
        self.batch = torch.randn(2, 48, 512)
        self.steps = 0

    def step(self) -> None:
        loss = self.net(self.batch).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)  # the same memory in every step, so that peaks can be compared
        self.steps += 1

    def state(self) -> dict[str, Any]:
        return {"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.steps}

    def tensors(self) -> list[torch.Tensor]:
        moments = [value for one in self.optimizer.state.values() for value in one.values()]
        return [*self.net.state_dict().values(), *moments]


def memcpy_seconds(training: Training) -> list[float]:
    """Copy the state into kept buffers, by hand: the least that a consistent checkpoint can cost."""
    buffers = [torch.empty_like(tensor) for tensor in training.tensors()]
    seconds = []
    for _ in range(6):
        training.step()  # as in a training, the caches hold something else
        began = time.perf_counter()
        for buffer, tensor in zip(buffers, training.tensors(), strict=True):
            buffer.copy_(tensor)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def contest(name: str, megabytes: int) -> dict[str, Any]:
    """Train one contestant in this process; return the measurements."""
    torch.set_num_threads(1)
    training = Training(megabytes)
    for _ in range(3):
        training.step()
    state_bytes = sum(tensor.nbytes for tensor in training.tensors())
    stalls: list[float] = []
    next_steps: list[float] = []
    steps: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as place:
        contestant = MAKERS[name](Path(place), training.optimizer)
        contestant.prepare(training.state())
        for _ in range(STEPS_BETWEEN):
            training.step()
        for _ in range(SAVES):
            began = time.perf_counter()
            contestant.save(training.state(), training.steps)
            stalls.append(time.perf_counter() - began)
            for number in range(STEPS_BETWEEN):
                busy, clock, cpu = contestant.busy(), time.perf_counter(), time.thread_time()
                training.step()
                taken = time.perf_counter() - clock, time.thread_time() - cpu
                if number == 0:
                    next_steps.append(taken[0])
                elif busy == contestant.busy():
                    steps[busy].append(taken)
        contestant.finish()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        stored = contestant.stored()
    memcpy = statistics.median(memcpy_seconds(training))
    slow = [
        statistics.median(s[i] for s in steps[True]) / statistics.median(s[i] for s in steps[False]) - 1
        if steps[True]
        else None
        for i in (0, 1)
    ]
    ordinary = statistics.median(s[0] for s in steps[False])
    return {
        "state": state_bytes,
        "memcpy": memcpy,
        "first": stalls[0] / memcpy,
        "stalls": [stall / memcpy for stall in stalls[1:]],
        "held": [(stall + step - ordinary) / memcpy for stall, step in zip(stalls[1:], next_steps[1:], strict=True)],
        "step": ordinary,
        "written": len(steps[True]),
        "slow_clock": slow[0],
        "slow_cpu": slow[1],
        "peak": peak,
        "stored": stored / state_bytes,
    }


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} … {max(values):{form}})"


def main(megabytes: int, rounds: int) -> None:
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name in CONTESTANTS:
            command = [sys.executable, __file__, "--contest", name, str(megabytes)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    every = [one for found in results.values() for one in found]
    state = every[0]["state"]
    print(f"state {state / 1e6:.0f} MB; {rounds} rounds of {SAVES} checkpoints; median (least … most)")
    print(
        f"a step {spread([o['step'] for o in every], '.3f')} s, a memcpy {spread([o['memcpy'] for o in every], '.3f')} s"
    )
    for name in CONTESTANTS[1:]:
        found = results[name]
        over = [(o["peak"] - n["peak"]) / state for o, n in zip(found, results["nothing"], strict=True)]
        print(name)
        print(f"  stall, memcpys           {spread([s for o in found for s in o['stalls']], '.2f')}")
        print(f"  stall and step, memcpys  {spread([s for o in found for s in o['held']], '.2f')}")
        print(f"  the first stall          {spread([o['first'] for o in found], '.2f')}")
        if found[0]["slow_clock"] is not None:
            steps = sum(o["written"] for o in found)
            print(
                f"  slower while written     {spread([100 * o['slow_clock'] for o in found], '.1f')} %, {steps} steps"
            )
            print(f"  the same in CPU time     {spread([100 * o['slow_cpu'] for o in found], '.1f')} %")
        print(f"  memory, states           {spread(over, '.2f')}")
        print(f"  store, states            {spread([o['stored'] for o in found], '.3f')}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contest"]:
        print(json.dumps(contest(sys.argv[2], int(sys.argv[3]))))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 300, int(sys.argv[2]) if len(sys.argv) > 2 else 3)
