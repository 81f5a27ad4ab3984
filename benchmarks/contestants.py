"""Ways of saving the state of a training, for :mod:`benchmarks.stall`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

KEPT = 7
"""More checkpoints than a contest saves, so that none is pruned."""


class Contestant:
    """A way of saving."""

    def prepare(self, state: Mapping[str, Any]) -> None:
        """Do before the training what makes saving faster."""

    def save(self, state: Mapping[str, Any], step: int) -> None:
        raise NotImplementedError

    def busy(self) -> bool:
        """Return whether a save is still in progress."""
        return False

    def finish(self) -> None:
        """Wait for all saves."""

    def stored(self) -> float:
        """Return the bytes in the store for each checkpoint."""
        raise NotImplementedError


class Ours(Contestant):
    """A manager on a run of a local tracking store."""

    def __init__(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        import mlflow

        from mltrain import CheckpointManager

        os.environ["MLTRAIN_HOME"] = str(folder / "home")
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.create_experiment("stall", artifact_location=str(folder / "artifacts"))
        os.environ["MLFLOW_EXPERIMENT_NAME"] = "stall"
        self._manager = CheckpointManager(max_to_keep=KEPT)

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


class SaveAndLog(Contestant):
    """What a loop with MLflow does: torch.save into a temporary file, log_artifact."""

    def __init__(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        import mlflow

        self._mlflow, self._folder, self._count = mlflow, folder, 0
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        experiment = mlflow.create_experiment("stall", artifact_location=str(folder / "artifacts"))
        mlflow.start_run(experiment_id=experiment)

    def save(self, state: Mapping[str, Any], step: int) -> None:
        file = self._folder / "checkpoint.pt"
        torch.save(state, file)
        self._mlflow.log_artifact(str(file), f"checkpoints/{step}")
        file.unlink()
        self._count += 1

    def finish(self) -> None:
        self._mlflow.end_run()

    def stored(self) -> float:
        return size_of(self._folder / "artifacts") / self._count


class AsyncSave(Contestant):
    """torch.distributed.checkpoint.async_save on one rank, into local files."""

    def __init__(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        import torch.distributed as dist

        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
        self._folder, self._count = folder, 0
        self._future: Any = None

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


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
