"""A training with Ignite: two spirals, a small network. The line marked ``# +`` is all that mltrain adds.

Run it, interrupt it with Ctrl+C or kill it, and continue the run whose id it printed::

    python projects/ignite_spirals/train.py
    python projects/ignite_spirals/train.py mltrain:<run id>
"""

import sys
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from torch import nn
from torch.utils.data import TensorDataset

from mltrain import ResumableLoader
from mltrain.adapters.ignite import MltrainSaver


def spirals(points: int = 400) -> TensorDataset:
    """Return two interleaved spirals: points (N, 2) float32 and their class (N,) int64."""
    turn = torch.linspace(0.5, 3.5, points // 2) * torch.pi
    arm = torch.stack([turn.cos(), turn.sin()], 1) * turn[:, None] / 10
    return TensorDataset(torch.cat([arm, -arm]), torch.arange(2).repeat_interleave(points // 2))


def main(resume: str | None = None, epochs: int = 100) -> str | None:
    """Train, or continue the run of an address; return the run's id."""
    torch.manual_seed(0)
    data = spirals()
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Dropout(0.1), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loader = ResumableLoader(data, 50, seed=0)

    def step(engine: Engine, batch: Any) -> float:
        model.train()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    def evaluate() -> None:
        model.eval()
        with torch.no_grad():
            right = model(data.tensors[0]).argmax(1) == data.tensors[1]
        saver.log_metrics({"accuracy": right.float().mean()})

    trainer = Engine(step)
    to_save = {"model": model, "optimizer": optimizer, "trainer": trainer, "loader": loader}
    saver = MltrainSaver(trainer, to_save, resume, metric="accuracy")  # +
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=20) | Events.EPOCH_COMPLETED, Checkpoint(to_save, saver))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: saver.log_metrics({"loss": engine.state.output})
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, evaluate)
    trainer.run(loader, max_epochs=epochs)
    return saver.run_id


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
