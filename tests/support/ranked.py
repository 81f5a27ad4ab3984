"""The tiny project, in which one rank alone fails; and one without noise, whose losses several ranks reproduce."""

import errno
import os
import signal
from typing import Any, ClassVar

import tiny  # type: ignore[import-not-found] # the file beside this one, in the working directory of a test
import torch
import torchmetrics
from torch import nn

import mltrain


class Config(tiny.Config):  # type: ignore[misc]
    victim: int = -1
    plain: bool = False
    evaluate_on: str = "rank 0"
    drift: bool = False
    die_at_commit: int = 0
    die_at_manifest: int = 0
    stop_at_upload: int = 0
    full_at: int = 0
    hang_at: int = 0

    execution_fields: ClassVar[frozenset[str]] = tiny.Config.execution_fields | {
        *("victim", "die_at_commit", "die_at_manifest", "stop_at_upload", "full_at", "hang_at"),
    }


def build(config: Config) -> mltrain.Task:
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if restarted or config.victim not in (-1, int(os.environ.get("RANK", "0"))):
        config = config.model_copy(update={"kill_at": 0, "raise_at": 0, "signal_at": 0, "nan_at": 0})
    if config.die_at_commit and os.environ.get("RANK") == "0":
        die_at_commit(config.die_at_commit)
    if config.die_at_manifest and os.environ.get("RANK") == "0":
        upload_before_next()
        signalled_at("upload", config.die_at_manifest, signal.SIGKILL, lambda file, *_: file.name == "manifest.json")
    if config.stop_at_upload and os.environ.get("RANK") == "1":
        signalled_at(
            "upload_all", config.stop_at_upload, signal.SIGSTOP, lambda files, *_: files[0].name.startswith("model")
        )
    if config.full_at and os.environ.get("RANK") == "1":
        before_step(config.full_at, fill_disk)
    if config.hang_at and os.environ.get("RANK") != str(config.victim):
        before_step(config.hang_at, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    task: mltrain.Task = plain(config) if config.plain else tiny.build(config)
    return task


def die_at_commit(number: int) -> None:
    """Kill this process between a checkpoint's parts and its manifest."""
    from mltrain.checkpoint.staging import Staging

    commit, count = Staging.commit, 0

    def counted(*given: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return commit(*given)

    Staging.commit = counted  # type: ignore[method-assign]


def upload_before_next() -> None:
    """Let this process stage only after the last upload ended. So a fault always meets the same checkpoint."""
    from mltrain.checkpoint.committer import Committer

    stage = Committer._stage

    def waited(committer: Committer, *given: Any) -> Any:
        committer._uploads.wait()
        return stage(committer, *given)

    Committer._stage = waited  # type: ignore[method-assign]


def signalled_at(method: str, number: int, what: signal.Signals, counts: Any) -> None:
    """Send this process a signal before the ``number``-th remote upload."""
    from mltrain.store.remote import RemoteArtifacts

    upload, count = getattr(RemoteArtifacts, method), 0

    def counted(artifacts: Any, *given: Any) -> Any:
        nonlocal count
        count += counts(*given)
        if count == number and counts(*given):
            os.kill(os.getpid(), what)
        return upload(artifacts, *given)

    setattr(RemoteArtifacts, method, counted)


def before_step(number: int, fault: Any) -> None:
    """Let a fault happen in this process before a step."""
    call = tiny.Faulty.__call__

    def stepping(step: Any, batch: Any) -> Any:
        if step.done + 1 == number:
            fault()
        return call(step, batch)

    tiny.Faulty.__call__ = stepping


def fill_disk() -> None:
    """Let this process's disk be full from now on."""

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.write = full


class Drifting:
    """A step that changes one rank's model without gradients."""

    def __init__(self, inner: mltrain.Supervised) -> None:
        self.inner = inner

    def parts(self) -> Any:
        return self.inner.parts()

    def __call__(self, batch: Any) -> Any:
        result = self.inner(batch)
        if os.environ.get("RANK") == "1":
            with torch.no_grad():
                next(iter(self.inner.model.parameters())).add_(1e-3)
        return result


def plain(config: Config) -> mltrain.Task:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(config.items, 6, generator=generator)
    data = torch.utils.data.TensorDataset(inputs, (inputs.sum(1) > 0).long())
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr)
    step: Any = mltrain.Supervised(net, nn.CrossEntropyLoss(), optimizer, clip=0.5)
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    def evaluate() -> dict[str, float]:
        part = slice(rank, None, size) if config.evaluate_on == "all ranks" else slice(None)
        outputs, labels = net(inputs[part]), data.tensors[1][part]
        accuracy = torchmetrics.classification.MulticlassAccuracy(2, average="micro")
        accuracy.update(outputs, labels)  # and compute() sums over the ranks that take part in the evaluation
        return {
            "val/loss": float(nn.functional.cross_entropy(outputs, labels)),
            "val/accuracy": float(accuracy.compute()),
            "val/rank": float(rank),
        }

    where: Any = config.evaluate_on
    return mltrain.Task(
        Drifting(step) if config.drift else tiny.Faulty(step, config),
        mltrain.ResumableLoader(data, config.batch_size),
        evaluate=evaluate,
        evaluate_on=where,
    )
