"""A small training of Ignite."""

import os
from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mltrain import ResumableLoader
from mltrain.adapters.ignite import MltrainSaver

DATA = TensorDataset(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)))


def resumable() -> ResumableLoader:
    return ResumableLoader(DATA, 4, seed=0)


def stateful() -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(DATA, batch_size=4, shuffle=True)


def plain() -> Any:
    return DataLoader(DATA, 4, shuffle=True)


class Loop:
    """Model, engine and saver; dropout, a schedule, a metric at each iteration, an evaluation at the ends of epochs."""

    def __init__(
        self,
        resume: str | None = None,
        *,
        loader: Callable[[], Any] = resumable,
        every: Any = None,
        at: tuple[int, Callable[["Loop"], Any]] | None = None,
        to_save: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 7, 0.8)
        self.loader = loader()
        self.trainer = trainer = Engine(self.step)
        objects = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule, "trainer": trainer}
        if hasattr(self.loader, "state_dict"):
            objects["loader"] = self.loader
        self.to_save = {**objects, **(to_save or {})}
        self.saver = MltrainSaver(trainer, self.to_save, resume, **{"metric": "accuracy", **options})
        event = every if every is not None else Events.ITERATION_COMPLETED(every=3)
        self.checkpoint = Checkpoint(self.to_save, self.saver, n_saved=1)
        trainer.add_event_handler(event, self.checkpoint)  # before the others, and all the same after them
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: self.schedule.step())
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: self.saver.log_metrics({"loss": engine.state.output})
        )
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.evaluate)
        if at is not None:
            trainer.add_event_handler(Events.ITERATION_STARTED(once=at[0]), lambda: at[1](self))

    def step(self, engine: Engine, batch: Any) -> float:
        loss = (self.model(batch[0]) - 1).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def evaluate(self) -> None:
        self.model.eval()
        with torch.no_grad():
            self.saver.log_metrics({"accuracy": -(self.model(DATA.tensors[0]) - 1).square().mean()})
        self.model.train()

    def run(self, max_epochs: int = 3) -> "Loop":
        self.trainer.run(self.loader, max_epochs=max_epochs)
        return self


def sent(number: int, wait: bool = False) -> Callable[[Loop], None]:
    """Return a handler that sends this process a signal. With ``wait`` the handler first waits for the commits."""

    def send(loop: Loop) -> None:
        if wait:
            loop.saver._training.manager.wait()  # type: ignore[union-attr]
        os.kill(os.getpid(), number)

    return send
