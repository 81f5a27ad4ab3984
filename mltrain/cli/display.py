"""Shows a training or a pipeline on a terminal.

A training has a progress bar on stderr, and a line per epoch and the next commands on stdout. A pipeline prints its decisions,
stages, status and result.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mltrain.cli.progress import bar_console
from mltrain.cli.tables import table
from mltrain.commands.result import STOPPED, STOPPED_STAGED, Display, Outcome
from mltrain.errors import counted
from mltrain.pipelines.decisions import Decision
from mltrain.pipelines.event_log import LOG_FILE
from mltrain.pipelines.plan import PipelineDisplay, Result
from mltrain.pipelines.status import Row, shown
from mltrain.provenance import fingerprint
from mltrain.redaction import harmless
from mltrain.run.description import WITH_REPORT, evaluation_options

if TYPE_CHECKING:
    from mltrain.checkpoint.manifest import Manifest
    from mltrain.pipeline import Pipeline
    from mltrain.run.tracked import TrackedRun
    from mltrain.trainer.loop import Trainer

_MOST_COLUMNS = 6


class Terminal(Display):
    """Shows a training; the progress bar needs a terminal."""

    def __init__(self) -> None:
        self._console = bar_console()
        self._progress: Progress | None = None
        self._shown_epoch = -1
        self._page_shown = False
        self._named = False
        self._epoch_began = time.monotonic()
        self._decisive: str | None = None
        self._evaluation: str | None = WITH_REPORT  # until the task is known

    def resuming(self, run_id: str) -> None:
        """Print the run's id before the task is built."""
        line(f"run_id={run_id}")
        self._named = True

    def opened(self, run: "TrackedRun", where: str) -> None:
        """Print where the run is stored, and its id."""
        self._page_shown = len(where.splitlines()) > 1
        line(where)
        local = run.artifacts.local_root
        line(
            f"Checkpoints and artifacts go to {local}."
            if local is not None
            else "Checkpoints and artifacts go to the artifact store of the run, once it is known."
            if not run.known
            else f"Checkpoints and artifacts go to the artifact store of {'the server' if run.server.is_server else 'the run'}."
        )
        line(f"The log is {run.home / 'log.csv'}")
        if not self._named:
            line(f"run_id={run.id}")

    def began(self, trainer: "Trainer", origin: str) -> None:
        """Print where training begins, and start the bar."""
        config, progress = trainer.config, trainer.progress
        self._decisive = config.best_metric
        self._evaluation = evaluation_options(trainer.task)
        for text in trainer.task.summary:
            line(text)
        line(
            f"Training on {trainer.device} from {origin}: epoch {progress.epoch + 1} of {config.epochs}"
            if not trainer.done
            else f"Nothing left to train: {progress.epoch} of {config.epochs} epochs are done."
        )
        self._shown_epoch = progress.epoch
        self._epoch_began = time.monotonic()
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        total = trainer.batches
        self._bar = self._progress.add_task("", total=total, epoch=progress.epoch + 1, completed=progress.batch)
        self._progress.start()

    def stepped(self, trainer: "Trainer") -> None:
        """Advance the bar; print a line after each epoch."""
        if self._progress is None:
            return
        progress = trainer.progress
        if progress.epoch != self._shown_epoch:
            self._shown_epoch = progress.epoch
            seconds, self._epoch_began = time.monotonic() - self._epoch_began, time.monotonic()
            line(_epoch_line(trainer, seconds))
            self._progress.reset(self._bar, epoch=progress.epoch + 1)
        else:
            self._progress.update(self._bar, completed=progress.batch)

    def waiting(self, what: str) -> None:
        """Print what the training waits for."""
        if self._progress is not None:
            self._progress.stop()
        if self._console.is_terminal:
            self._console.print(f"[dim]{what} …[/dim]")

    def finish(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()

    def ended(self, outcome: Outcome) -> None:
        """Print the outcome and the next commands."""
        self.finish()
        line(f"Ended: {outcome.why}.")
        if outcome.best is not None:
            line(f"Best: {_with_figures(outcome.best, self._decisive)}")
        if outcome.newest is not None:
            line(f"Newest checkpoint: {outcome.newest.name} ({outcome.newest.size / 1e6:.1f} MB)")
        if outcome.lost:
            line(
                f"{counted(outcome.lost, 'record')} (metric points, tags or files) LOST: neither server nor disk took them."
            )
        if not outcome.known:
            line(
                "The tracking store never answered, so the run does not exist yet. Create and send it with: mltrain sync"
            )
            line(f"Resume{', Evaluate' if self._evaluation is not None else ''} and Pull work after that.")
            return
        if outcome.only_local:
            line(
                f"The newest checkpoint is on this machine only ({fingerprint.host()}): the artifact store has not taken it. "
                "Send it with: mltrain sync"
            )
            line("Or resume on this machine. On another machine, a resume begins from an older checkpoint.")
        if not outcome.delivered and not outcome.lost:
            because = f" ({outcome.trouble.rstrip('.')})" if outcome.trouble else ""
            line(f"Some records are still on this disk only{because}. Send them with: mltrain sync")
        line(f"Resume:   mltrain train --resume-run {outcome.run_id}")
        if outcome.lost:
            line("A resume records those lost metric points again that the newest checkpoint contains.")
        if outcome.exit_code not in (STOPPED, STOPPED_STAGED):
            if (command := self.evaluation(outcome.run_id)) is not None:
                line(f"Evaluate: {command}")
            line(f"Pull:     mltrain pull {outcome.run_id} --to model")
        if not self._page_shown:
            line(f"Look:     mltrain ui {outcome.run_id}")

    def evaluation(self, run_id: str) -> str | None:
        """Return the evaluation command. ``None`` if the task has no evaluation."""
        return None if self._evaluation is None else f"mltrain evaluate {run_id}{self._evaluation}"


def _epoch_line(trainer: "Trainer", seconds: float) -> str:
    """Return an epoch's line, as wide as the terminal.

    The best metric comes first, then as many validation metrics as fit.
    """
    row = trainer.history.rows[-1]
    rate = f"  lr {row['learning_rate']:.2e}" if "learning_rate" in row else ""
    star = " *" if trainer.best.epoch == trainer.progress.epoch else ""
    text, end = f"epoch {row['epoch']:>4}/{trainer.config.epochs}", f"{rate}  {seconds:.1f} s{star}"
    first = (trainer.config.best_metric, "val/loss", "train/loss")
    names = dict.fromkeys(name for name in (*first, *(n for n in row if n.startswith("val/")), *row) if name in row)
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for number, name in enumerate([name for name in names if "/" in name][:_MOST_COLUMNS]):
        figure = f"  {name} {row[name]:.4f}"
        if number and room is not None and len(text + figure + end) > room:
            break
        text += figure
    return text + end


def _with_figures(checkpoint: "Manifest", decisive: str | None) -> str:
    """Return a checkpoint's title and metrics, the decisive one first."""
    names = sorted((name for name in checkpoint.metrics if name.startswith("val/")), key=lambda name: name != decisive)
    figures = ", ".join(f"{name} {checkpoint.metrics[name]:.4g}" for name in names[:_MOST_COLUMNS])
    return f"{checkpoint.title} ({checkpoint.name}){': ' + figures if figures else ''}"


def line(text: str) -> None:
    """Print a line; ignore a closed pipe."""
    try:
        print(harmless(text), flush=True)
    except (BrokenPipeError, ValueError, OSError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


class TerminalStage(Terminal):
    """Shows the training of a stage."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def resuming(self, run_id: str) -> None:
        """Print nothing: ``opened`` prints the run."""

    def opened(self, run: "TrackedRun", where: str) -> None:
        """Print the run's id and the path of its log."""
        line(f"  run {run.id}; follow it with: tail -f {run.home / LOG_FILE}")

    def ended(self, outcome: Outcome) -> None:
        """Print how the stage ended and its best checkpoint."""
        self.finish()
        line(f"  {self._stage}: {outcome.why}")
        if outcome.best is not None:
            line(f"  best: {_with_figures(outcome.best, self._decisive)}")
        elif outcome.metrics:
            line("  " + ", ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items()))


class TerminalPipeline(PipelineDisplay):
    """Shows a pipeline to a person."""

    def __init__(self, pipeline: "Pipeline") -> None:
        self._pipeline = pipeline
        self._stages: dict[str, TerminalStage] = {}

    def opened(self, run: "TrackedRun", where: str, *, new: bool) -> None:
        """Print where the run is stored, and its id."""
        line(where)
        line(f"{'New' if new else 'Resuming'} run {run.identity.name} (attempt {run.ordinal})")
        line(f"run_id={run.id}")

    def decided(self, decision: Decision, number: int, count: int) -> None:
        """Print the decision about a stage, and why."""
        line(f"[{number}/{count}] {decision.stage}: {decision.action} ({decision.why})")

    def stage(self, name: str) -> TerminalStage:
        """Return the display of a stage."""
        return self._stages.setdefault(name, TerminalStage(name))

    def ended(self, result: Result) -> None:
        """Print how the pipeline ended and the next commands."""
        line(f"Ended: {result.why}.")
        line(f"Status: mltrain pipeline --run {result.run_id} --status")
        if result.exit_code:
            line(f"Resume: mltrain pipeline --run {result.run_id} --mode resume")
        for stage, run_id in list(result.stages.items())[-1:] if result.exit_code == 0 else ():
            trains = self._pipeline.stage(stage).make is None
            if trains and (command := self.stage(stage).evaluation(run_id)) is not None:
                line(f"Evaluate {stage}: {command}")


def print_result(result: Result) -> None:
    """Print how a pipeline ended, as JSON."""
    stages = [
        {"stage": d.stage, "action": d.action, "why": d.why, "run_id": result.stages.get(d.stage, d.run_id)}
        for d in result.decisions
    ]
    facts = {"run_id": result.run_id, "exit_code": result.exit_code, "why": result.why, "stages": stages}
    print(json.dumps(facts, indent=1))


def print_status(about: Mapping[str, Any], rows: Sequence[Row], as_json: bool) -> None:
    """Print a pipeline's state as a table or JSON."""
    if as_json:
        facts = {key: about.get(key) for key in ("pipeline", "run_id", "name", "state", "started")}
        print(json.dumps({**facts, "stages": [asdict(row) for row in rows]}, indent=1))
        return
    if about["run_id"] is None:
        print(f"Pipeline {about['pipeline']}: you have no run of it in this experiment yet.")
    else:
        run = f"run {about['run_id']} ({about['name']}, {about['state']}), {about['started']}"
        print(f"Pipeline {about['pipeline']}: {run}")
    table("Stages", ("stage", "state", "epochs", "best", "run id", "next", "why"), shown(rows))
    for row in rows:
        if row.log is not None:
            print(f"Log of {row.stage}: {row.log}")
