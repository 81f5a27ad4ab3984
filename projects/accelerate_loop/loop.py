"""A loop on accelerate: two spirals, a small network. The lines marked ``# +`` are all that mltrain adds.

Run it, interrupt it with Ctrl+C, and continue the run whose id it printed::

    python projects/accelerate_loop/loop.py
    python projects/accelerate_loop/loop.py <run id>
"""

import sys

import torch
from accelerate import Accelerator
from torch import nn

from mltrain import CheckpointManager  # +
from mltrain.adapters.accelerate import MltrainTracker, load, save  # +
from projects.plain_loop.loop import spirals


def main(run_id: str | None = None, epochs: int = 100) -> None:
    """Train, or continue the run of this id."""
    torch.manual_seed(0)
    inputs, labels = spirals()
    net: nn.Module = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer: torch.optim.Optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=50, shuffle=True)

    with CheckpointManager(run_id, metric="accuracy", mode="max") as manager:  # +
        print(f"run_id={manager.run.id}", flush=True)  # +
        accelerator = Accelerator(cpu=True, log_with=MltrainTracker(manager))  # +
        accelerator.init_trackers("spirals", {"lr": 3e-3})
        net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
        position = load(accelerator, manager)  # +
        while position.epoch < epochs:  # +
            for batch, wanted in position.batches(loader):  # +
                loss = nn.functional.cross_entropy(net(batch), wanted)
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
            accuracy = float((net(inputs).argmax(1) == labels).float().mean())
            print(f"epoch {position.epoch}: accuracy {accuracy:.3f}", flush=True)
            accelerator.log({"accuracy": accuracy}, step=position.step)
            save(accelerator, manager, position, metrics={"accuracy": accuracy})  # +
        accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
