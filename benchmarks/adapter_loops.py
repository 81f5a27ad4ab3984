"""One training loop an engine, see :mod:`benchmarks.adapters`.

python -m benchmarks.adapter_loops ENGINE with|without STEPS KILL_AT RUN
"""

import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

EVERY, BATCH = 20, 32
METRICS = ("m1", "m2", "m3")


class Clock:
    """Records the start of each step; kills the process once."""

    def __init__(self, kill_at: int) -> None:
        self.began: list[float] = []
        self._kill_at = kill_at

    def __call__(self) -> None:
        self.began.append(time.perf_counter())
        if len(self.began) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def facts(self, first: int) -> dict[str, float]:
        """Return steps a second and the stall in milliseconds; ``first`` is the number of the first step."""
        gaps = [after - before for before, after in zip(self.began, self.began[1:], strict=False)]
        saving = [gap for number, gap in enumerate(gaps, first) if number % EVERY == 0]
        others = [gap for number, gap in enumerate(gaps, first) if number % EVERY]
        stall = statistics.median(saving) - statistics.median(others) if saving else float("nan")
        return {"rate": len(gaps) / (self.began[-1] - self.began[0]), "stall": 1000 * stall}


class Net(nn.Module):
    """Tells the clock of each training step."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512))
        self._clock = clock

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        if self.training:
            self._clock()
        outputs = self.layers(inputs)
        loss = nn.functional.mse_loss(outputs, inputs)
        return {"loss": loss, "outputs": outputs}


def three(step: int) -> dict[str, float]:
    return {name: step + number / 10 for number, name in enumerate(METRICS)}


def numbers(steps: int) -> Any:
    return torch.randn(steps * BATCH, 512, generator=torch.Generator().manual_seed(0))


def loader(steps: int) -> Any:
    return torch.utils.data.DataLoader(numbers(steps), batch_size=BATCH)


def lightning(adapted: bool, steps: int, run: str | None, clock: Clock, say: Callable[[str], None]) -> None:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(clock)

        def training_step(self, batch: Any, index: int) -> Any:
            self.log_dict(three(self.global_step + 1))
            return self.net(batch)["loss"]

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1, "accelerator": "cpu"}
    if adapted:
        from mltrain.adapters.lightning import MltrainCheckpoint

        callback = MltrainCheckpoint(every_n_train_steps=EVERY)
        trainer = pl.Trainer(max_epochs=1, callbacks=[callback], **quiet)
        trainer.fit(Module(), loader(steps), ckpt_path=f"mltrain:{run}" if run else None)
        return
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger("benchmark", tracking_uri=os.environ["MLFLOW_TRACKING_URI"], log_model="all", run_id=run)
    say(str(logger.run_id))
    saving = ModelCheckpoint("local", every_n_train_steps=EVERY, save_top_k=-1, save_last=True)
    trainer = pl.Trainer(max_epochs=1, logger=logger, callbacks=[saving], **quiet)
    trainer.fit(Module(), loader(steps), ckpt_path="last" if run else None)


def huggingface(adapted: bool, steps: int, run: str | None, clock: Clock, say: Callable[[str], None]) -> None:
    from transformers import Trainer, TrainingArguments

    data = [{"inputs": row, "labels": torch.zeros(())} for row in numbers(steps)]
    arguments = TrainingArguments(
        output_dir="local",
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        logging_steps=1,
        save_steps=EVERY,
        disable_tqdm=True,
        use_cpu=True,
        report_to="none" if adapted else "mlflow",
    )
    if adapted:
        from mltrain.adapters.huggingface import MltrainCallback, restore

        trainer = Trainer(Net(clock), arguments, train_dataset=data, callbacks=[MltrainCallback()])
        trainer.train(resume_from_checkpoint=restore(run))
        return
    import mlflow

    os.environ["HF_MLFLOW_LOG_ARTIFACTS"] = "1"
    with mlflow.start_run(run_id=run) as active:
        say(active.info.run_id)
        Trainer(Net(clock), arguments, train_dataset=data).train(resume_from_checkpoint=bool(run))


def accelerate(adapted: bool, steps: int, run: str | None, clock: Clock, say: Callable[[str], None]) -> None:
    from accelerate import Accelerator

    net = Net(clock)
    parts = (net, torch.optim.AdamW(net.parameters()), loader(steps))
    if adapted:
        from mltrain import CheckpointManager
        from mltrain.adapters.accelerate import MltrainTracker, load, save

        with CheckpointManager(run) as manager:
            say(manager.run.id)
            accelerator = Accelerator(cpu=True, log_with=MltrainTracker(manager))
            accelerator.init_trackers("benchmark")
            model, optimizer, batches = accelerator.prepare(*parts)
            position = load(accelerator, manager)
            for batch in position.batches(batches):
                _step(accelerator, model, optimizer, batch)
                accelerator.log(three(position.step), step=position.step)
                if position.step % EVERY == 0:
                    save(accelerator, manager, position)
            accelerator.end_training()
        return
    import mlflow

    accelerator = Accelerator(cpu=True, log_with="mlflow")
    accelerator.init_trackers("benchmark", init_kwargs={"mlflow": {"run_id": run}} if run else {})
    active = mlflow.active_run()
    assert active is not None
    say(active.info.run_id)
    model, optimizer, batches = accelerator.prepare(*parts)
    done = 0
    if run:
        newest = max(Path("local").glob("step-*"), key=lambda folder: int(folder.name.partition("-")[2]))
        accelerator.load_state(str(newest))
        done = int(newest.name.partition("-")[2])
    for step, batch in enumerate(accelerator.skip_first_batches(batches, done), done + 1):
        _step(accelerator, model, optimizer, batch)
        accelerator.log(three(step), step=step)
        if step % EVERY == 0:
            accelerator.save_state(f"local/step-{step}")
            mlflow.log_artifacts(f"local/step-{step}", f"step-{step}")
    accelerator.end_training()


def _step(accelerator: Any, model: Any, optimizer: Any, batch: Any) -> None:
    optimizer.zero_grad()
    accelerator.backward(model(batch)["loss"])
    optimizer.step()


def ignite(adapted: bool, steps: int, run: str | None, clock: Clock, say: Callable[[str], None]) -> None:
    import mlflow
    from ignite.engine import Engine, Events
    from ignite.handlers import Checkpoint, DiskSaver

    net = Net(clock)
    optimizer = torch.optim.AdamW(net.parameters())

    def update(engine: Any, batch: Any) -> float:
        optimizer.zero_grad()
        loss = net(batch)["loss"]
        loss.backward()
        optimizer.step()
        return float(loss)

    trainer = Engine(update)
    objects = {"model": net, "optimizer": optimizer, "trainer": trainer}
    often = Events.ITERATION_COMPLETED(every=EVERY)
    if adapted:
        from mltrain.adapters.ignite import MltrainSaver

        saver = MltrainSaver(trainer, objects, f"mltrain:{run}" if run else None)
        trainer.on(Events.ITERATION_COMPLETED)(lambda engine: saver.log_metrics(three(engine.state.iteration)))
        trainer.add_event_handler(often, Checkpoint(objects, saver))
        trainer.run(loader(steps), max_epochs=1)
        return
    with mlflow.start_run(run_id=run) as active:
        say(active.info.run_id)
        if run:
            newest = max(Path("local").glob("*.pt"), key=lambda file: file.stat().st_mtime)
            Checkpoint.load_objects(objects, torch.load(newest, weights_only=True))
        trainer.on(Events.ITERATION_COMPLETED)(
            lambda engine: mlflow.log_metrics(three(engine.state.iteration), step=engine.state.iteration)
        )
        keep = Checkpoint(objects, DiskSaver("local", create_dir=True, require_empty=False), n_saved=None)
        trainer.add_event_handler(often, keep)
        trainer.on(often)(lambda engine: mlflow.log_artifact(str(keep.last_checkpoint), "checkpoints"))
        trainer.run(loader(steps), max_epochs=1)


def main(engine: str, kind: str, steps: str, kill_at: str, run: str) -> None:
    """Train in this process, and write the facts to ``facts.json``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = Clock(int(kill_at))

    def say(run_id: str) -> None:
        print(f"run_id={run_id}", flush=True)

    globals()[engine](kind == "with", int(steps), run or None, clock, say)
    Path("facts.json").write_text(json.dumps(clock.facts(1)))


if __name__ == "__main__":
    main(*sys.argv[1:])
