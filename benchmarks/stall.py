"""What a checkpoint costs the training: mltrain, torch.save + log_artifact, torch.distributed.checkpoint.async_save.

python -m benchmarks.stall [megabytes] [rounds]

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
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.contestants import AsyncSave, Contestant, Late, Nothing, Ours, SaveAndLog

SAVES, STEPS_BETWEEN = 6, 14
CONTESTANTS: dict[str, Callable[[Path, torch.optim.Optimizer], Contestant]] = {
    "nothing": Nothing,
    "mltrain": Ours,
    "mltrain, late copy": Late,
    "torch.save + log_artifact": SaveAndLog,
    "async_save": AsyncSave,
}


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
        contestant = CONTESTANTS[name](Path(place), training.optimizer)
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
            command = [sys.executable, "-m", "benchmarks.stall", "--contest", name, str(megabytes)]
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
    for name in list(CONTESTANTS)[1:]:
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
