"""What every peer trains, and the clock of its steps; see :mod:`benchmarks.peers`."""

import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

TOKENS = 48
METRICS = ("loss", "grad_norm", "rate")


@dataclass(frozen=True)
class Work:
    """What is trained, for how long.

    Attributes:
        layers: of a transformer encoder; none makes a perceptron.
        width: features of a token.
        rows: sequences a batch.
        steps: optimizer steps at most.
        every: steps between two checkpoints; 0 for none.
        most_seconds: after which the loop ends early.
        run: id of the run to resume; empty for a new one.
    """

    layers: int
    width: int
    rows: int
    steps: int
    every: int = 0
    most_seconds: float = 1e9
    run: str = ""


class Clock:
    """When each step began and ended; of a resume, when the first one began, at which the process ends.

    A peer does what it does for a step (record, save) between the end of a step and the beginning of the next.
    """

    def __init__(self, work: Work) -> None:
        self.began: list[float] = []
        self.ended: list[float] = []
        self._work = work
        self._asked = time.perf_counter()

    def ask(self) -> None:
        """Note that the loop is asked to resume now: the imports are done."""
        self._asked = time.perf_counter()

    def begin(self) -> None:
        if self._work.run:
            report({"resumed": time.perf_counter() - self._asked})
        self.began.append(time.perf_counter())

    def end(self, *_: object) -> None:
        self.ended.append(time.perf_counter())

    def forget(self) -> None:
        """Begin anew."""
        self.began, self.ended = [], []

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return bool(self.began) and time.perf_counter() - self.began[0] > self._work.most_seconds


class Net(nn.Module):
    """A transformer encoder or perceptron that times each forward. A forward returns the loss."""

    def __init__(self, work: Work, clock: Clock) -> None:
        super().__init__()
        heads, wide = max(1, work.width // 64), 4 * work.width
        blocks: list[nn.Module] = [
            nn.TransformerEncoderLayer(work.width, heads, wide, dropout=0.0, batch_first=True)
            for _ in range(work.layers)
        ]
        self.body = nn.Sequential(*(blocks or [nn.Linear(work.width, wide), nn.ReLU(), nn.Linear(wide, work.width)]))
        self._clock = clock

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        self._clock.begin()
        return {"loss": self.body(inputs).square().mean()}


class Same(torch.utils.data.Dataset[torch.Tensor]):
    """The same sequence over and over."""

    def __init__(self, work: Work) -> None:
        self._item = torch.randn(TOKENS, work.width, generator=torch.Generator().manual_seed(0))
        self._length = work.rows * work.steps

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._item


@dataclass(frozen=True)
class Training:
    """What a loop trains, and its clock."""

    work: Work
    clock: Clock
    net: Net
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, work: Work) -> "Training":
        torch.manual_seed(0)
        clock = Clock(work)
        net = Net(work, clock)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
        optimizer.register_step_post_hook(clock.end)
        return cls(work, clock, net, optimizer)

    def step(self, batch: torch.Tensor) -> dict[str, float]:
        self.optimizer.zero_grad()
        loss = self.net(batch)["loss"]
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        return dict(zip(METRICS, (loss.item(), float(norm), 1e-4), strict=True))

    def steps(self, done: int = 0) -> Iterator[tuple[int, dict[str, float], bool]]:
        """Train; yield after each step its number, its metrics, and whether it is to be saved."""
        loader = torch.utils.data.DataLoader(Same(self.work), batch_size=self.work.rows)
        for number, batch in enumerate(loader, 1):
            if number > done and not self.clock.over:
                yield number, self.step(batch), bool(self.work.every) and number % self.work.every == 0

    def bare(self, steps: int) -> tuple[float, float]:
        """Train without recording or saving anything; return the wall and CPU seconds of a step, and forget the times."""
        began, cpu = time.perf_counter(), time.process_time()
        for batch in torch.utils.data.DataLoader(Same(replace(self.work, steps=steps)), batch_size=self.work.rows):
            self.step(batch)
        taken = (time.perf_counter() - began) / steps, (time.process_time() - cpu) / steps
        self.clock.forget()
        return taken

    def state(self, step: int) -> dict[str, Any]:
        return {"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "step": step}

    def load(self, state: dict[str, Any]) -> int:
        self.net.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def tensors(self) -> list[torch.Tensor]:
        moments = [value for one in self.optimizer.state.values() for value in one.values()]
        return [*self.net.state_dict().values(), *moments]

    def copy_seconds(self) -> float:
        """Return the seconds of a copy into a kept buffer. No consistent checkpoint costs less."""
        buffers = [torch.empty_like(tensor) for tensor in self.tensors()]
        batch, seconds = torch.randn(self.work.rows, TOKENS, self.work.width), []
        for _ in range(4):
            self.step(batch)  # as in a training, the caches hold something else
            began = time.perf_counter()
            for buffer, tensor in zip(buffers, self.tensors(), strict=True):
                buffer.copy_(tensor)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds[1:])


def say(run_id: str) -> None:
    print("RUN", run_id, flush=True)


def report(found: dict[str, Any]) -> None:
    """Print the result and end this process at once."""
    print("RESULT", json.dumps(found), flush=True)
    os._exit(0)
