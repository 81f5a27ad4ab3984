"""One training loop a peer, see :mod:`benchmarks.peers`.

Every loop trains the same network on the same batch, clips the gradient, records three metrics a step, and saves a checkpoint
every so many steps into a tracking store. It returns when everything is there. Given a run, it resumes that run by its id:
from the store, in an empty folder.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.peer_training import METRICS, Same, Training, say


def nothing(training: Training) -> None:
    """The bare loop."""
    for _ in training.steps():
        pass


def mltrain(training: Training, *, late_copy: bool = False, earlier: bool = False) -> None:
    """A loop of one's own with mltrain's manager; an ``earlier`` release neither prepares nor copies late."""
    from mltrain import CheckpointManager, LateCopy, open_run

    run = open_run(training.work.run or None)
    late = LateCopy([training.optimizer]) if late_copy else None
    with CheckpointManager(run, max_to_keep=5) as manager:
        say(run.id)
        state = manager.load_latest_checkpoint()
        done = training.load(state) if state is not None else 0
        if state is not None:
            run.continue_exactly_after(done)
        for step, metrics, due in training.steps(done):
            if step == 1 and training.work.every and not earlier:
                manager.prepare(training.state(step))
            run.log_metrics(metrics, step)
            if due:
                state = training.state(step)
                manager.save(late.allow(state) if late is not None else state, step=step)
        if late is not None:
            late.finish()


def save_and_log(training: Training) -> None:
    """What a loop with MLflow does: torch.save into a file, log_artifact."""
    import mlflow

    with mlflow.start_run(run_id=training.work.run or None) as active:
        say(active.info.run_id)
        done = 0
        if training.work.run:
            file = mlflow.artifacts.download_artifacts(artifact_uri=newest(training.work.run), dst_path="received")
            done = training.load(torch.load(file, weights_only=True))
        for step, metrics, due in training.steps(done):
            mlflow.log_metrics(metrics, step)
            if due:
                torch.save(training.state(step), f"{step:06d}.pt")
                mlflow.log_artifact(f"{step:06d}.pt", "checkpoints")


def lightning(training: Training) -> None:
    """Lightning with MLFlowLogger(log_model="all") and a ModelCheckpoint."""
    import lightning.pytorch as pl
    import mlflow
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import MLFlowLogger

    work, clock = training.work, training.clock

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = training.net

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.net(batch)["loss"]
            self.log_dict(dict(zip(METRICS, (loss.detach(), 1.0, 1e-4), strict=True)))
            return loss

        def configure_optimizers(self) -> Any:
            return training.optimizer

        def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
            self.trainer.should_stop |= clock.over

    logger = MLFlowLogger(
        "peers", tracking_uri=os.environ["MLFLOW_TRACKING_URI"], log_model="all", run_id=work.run or None
    )
    say(str(logger.run_id))
    start = None
    if work.run:
        start = mlflow.artifacts.download_artifacts(artifact_uri=newest(work.run), dst_path="received")
    saving = [ModelCheckpoint("local", every_n_train_steps=work.every, save_top_k=-1)] if work.every else []
    trainer = pl.Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "gradient_clip_val": 1.0, "log_every_n_steps": 1, "logger": logger},
        **{"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": bool(saving)},
        callbacks=saving,
    )
    loader = torch.utils.data.DataLoader(Same(work), batch_size=work.rows)
    trainer.fit(Module(), loader, ckpt_path=start, weights_only=False)


def huggingface(training: Training) -> None:
    """The Trainer of transformers with report_to="mlflow" and HF_MLFLOW_LOG_ARTIFACTS."""
    import mlflow
    from transformers import Trainer, TrainerCallback, TrainingArguments

    work, clock = training.work, training.clock

    class InTime(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            control.should_training_stop |= clock.over

    def collated(items: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"inputs": torch.stack(items), "labels": torch.zeros(len(items))}

    arguments = TrainingArguments(
        **{"output_dir": "local", "max_steps": work.steps, "per_device_train_batch_size": work.rows, "use_cpu": True},
        **{"save_strategy": "steps" if work.every else "no", "save_steps": work.every or 1, "logging_steps": 1},
        **{"disable_tqdm": True, "report_to": "mlflow", "remove_unused_columns": False},
    )
    os.environ["HF_MLFLOW_LOG_ARTIFACTS"] = "1" if work.every else "0"
    schedule = torch.optim.lr_scheduler.ConstantLR(training.optimizer, factor=1.0)
    with mlflow.start_run(run_id=work.run or None) as active:
        say(active.info.run_id)
        start = None
        if work.run:
            found = mlflow.search_logged_models([active.info.experiment_id], output_format="list")
            latest = max(
                (one for one in found if one.source_run_id == work.run), key=lambda one: one.creation_timestamp
            )
            received = mlflow.artifacts.download_artifacts(artifact_uri=latest.model_uri, dst_path="received")
            start = str(next(Path(received).glob("artifacts/checkpoint-*")))
        trainer = Trainer(
            training.net,
            arguments,
            data_collator=collated,
            train_dataset=Same(work),
            optimizers=(training.optimizer, schedule),
            callbacks=[InTime()],
        )
        trainer.train(resume_from_checkpoint=start)


def async_save(training: Training) -> None:
    """torch.distributed.checkpoint.async_save, and a thread that uploads what it wrote."""
    import mlflow
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    uploads = ThreadPoolExecutor(1)
    with mlflow.start_run(run_id=training.work.run or None) as active:
        run_id, client = active.info.run_id, mlflow.MlflowClient()
        say(run_id)
        done, before = 0, None

        def upload(saved: Any, step: int) -> None:
            saved.result()
            client.log_artifacts(run_id, f"local/{step:06d}", f"checkpoints/{step:06d}")

        if training.work.run:
            last = max(entry.path for entry in client.list_artifacts(run_id, "checkpoints"))
            received = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=last, dst_path="received")
            done = load_distributed(dcp, training, received)
        for step, metrics, due in training.steps(done):
            mlflow.log_metrics(metrics, step)
            if due:
                if before is not None:
                    before.result()
                saved = dcp.async_save(training.state(step), checkpoint_id=f"local/{step:06d}")
                before = uploads.submit(upload, saved, step)
        if before is not None:
            before.result()


def copy_hash_write(training: Training) -> None:
    """The cheapest consistent, verified, durable checkpoint, without mltrain. See :mod:`benchmarks.limits`."""
    tensors: list[torch.Tensor] = []
    buffers: list[torch.Tensor] = []

    def take() -> None:
        buffers.extend(torch.empty_like(tensor).zero_() for tensor in tensors)

    def write(file: Path) -> None:
        digest = hashlib.sha256()
        with file.open("wb", buffering=0) as opened:
            for buffer in buffers:
                content = memoryview(buffer.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
                for start in range(0, len(content), 1 << 24):
                    opened.write(content[start : start + (1 << 24)])
                    digest.update(content[start : start + (1 << 24)])
            os.fsync(opened.fileno())

    with ThreadPoolExecutor(1) as thread:
        before = None
        for step, _, due in training.steps():
            if step == 1:
                tensors = training.tensors()
                before = thread.submit(take)
            if due and before is not None:
                before.result()
                for buffer, tensor in zip(buffers, training.tensors(), strict=True):
                    buffer.copy_(tensor)
                before = thread.submit(write, Path(f"{step:06d}.bin"))


def load_distributed(dcp: Any, training: Training, place: str) -> int:
    """Load a checkpoint of torch.distributed.checkpoint: into tensors that exist, so the optimizer is given its state first."""
    for parameter in training.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    rates = [group["lr"] for group in training.optimizer.param_groups]
    for group in training.optimizer.param_groups:
        group["lr"] = 0.0
    training.optimizer.step()
    state = training.state(0)
    for group, rate in zip(training.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    dcp.load(state, checkpoint_id=place)
    return training.load(state)


def newest(run_id: str) -> str:
    """Return the URI of the newest checkpoint's artifact file."""
    import mlflow

    client = mlflow.MlflowClient()

    def files(folder: str | None = None) -> Iterable[str]:
        for entry in client.list_artifacts(run_id, folder):
            if entry.is_dir:
                yield from files(entry.path)
            elif entry.path.endswith((".pt", ".ckpt")):
                yield entry.path

    number = {path: int("".join(c for c in path.rpartition("step=")[2] if c.isdigit())) for path in files()}
    return f"runs:/{run_id}/{max(number, key=number.__getitem__)}"


EARLIER = "mltrain, earlier"
LOOPS: dict[str, Callable[[Training], None]] = {
    "bare loop": nothing,
    "mltrain": mltrain,
    "mltrain, late_copy": partial(mltrain, late_copy=True),
    EARLIER: partial(mltrain, earlier=True),
    "torch.save + log_artifact": save_and_log,
    "Lightning + MLFlowLogger": lightning,
    "Trainer of transformers": huggingface,
    "async_save + upload thread": async_save,
}
LIMITS: dict[str, Callable[[Training], None]] = {"copy, hash, write": copy_hash_write}
