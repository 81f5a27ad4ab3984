"""A plain PyTorch loop: two spirals, a small network. The ten lines marked ``# +`` are all that mltrain adds.

Run it, interrupt it with Ctrl+C, and continue the run whose id it printed::

    python projects/plain_loop/loop.py
    python projects/plain_loop/loop.py <run id>
"""

import sys

import torch
from torch import nn

from mltrain import CheckpointManager  # +


def spirals(points: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two interleaved spirals: points (N, 2) float32 and their class (N,) int64."""
    turn = torch.linspace(0.5, 3.5, points // 2) * torch.pi
    arm = torch.stack([turn.cos(), turn.sin()], 1) * turn[:, None] / 10
    return torch.cat([arm, -arm]), torch.arange(2).repeat_interleave(points // 2)


def main(run_id: str | None = None, epochs: int = 200) -> None:
    """Train, or continue the run of this id."""
    torch.manual_seed(0)
    inputs, labels = spirals()
    net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    epoch = 0

    manager = CheckpointManager(run_id, max_to_keep=3, metric="accuracy", mode="max")  # +
    print(f"run_id={manager.run.id}", flush=True)  # +
    if (state := manager.load_latest_checkpoint()) is not None:  # +
        net.load_state_dict(state["model"])  # +
        optimizer.load_state_dict(state["optimizer"])  # +
        epoch = state["epoch"]  # +

    while epoch < epochs:
        for batch in torch.randperm(len(inputs)).view(-1, 50):
            loss = nn.functional.cross_entropy(net(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        epoch += 1
        accuracy = float((net(inputs).argmax(1) == labels).float().mean())
        print(f"epoch {epoch}: loss {loss:.4f}, accuracy {accuracy:.3f}", flush=True)
        state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}  # +
        manager.save_epoch_checkpoint(state, epoch, {"accuracy": accuracy})  # +
    manager.close()  # +


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
