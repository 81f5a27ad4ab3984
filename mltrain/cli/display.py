"""Shows a training on a terminal: a progress bar on stderr, a line an epoch and the next commands on stdout."""

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mltrain.commands.result import STOPPED, STOPPED_STAGED, Outcome
from mltrain.provenance import fingerprint
from mltrain.redaction import harmless

if TYPE_CHECKING:
    from mltrain.run.tracked import TrackedRun
    from mltrain.trainer.loop import Trainer

_MOST_COLUMNS = 6


class Terminal:
    """Shows a training; the bar only on a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._shown_epoch = -1
        self._page_shown = False
        self._named = False
        self._epoch_began = time.monotonic()

    def resuming(self, run_id: str) -> None:
        """Print the run's id before the task is built, which may take long."""
        line(f"run_id={run_id}")
        self._named = True

    def opened(self, run: "TrackedRun", where: str) -> None:
        """Print where the run is stored, and its id on a line of its own."""
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
        line(f"The log grows in {run.home / 'log.csv'}")
        if not self._named:
            line(f"run_id={run.id}")

    def began(self, trainer: "Trainer", origin: str) -> None:
        """Print where training begins, and start the bar."""
        config, progress = trainer.config, trainer.progress
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
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        total = trainer.batches
        self._bar = self._progress.add_task(
            "", total=total, epoch=progress.epoch + 1, said="", completed=progress.batch
        )
        self._progress.start()

    def stepped(self, trainer: "Trainer") -> None:
        """Advance the bar; print a line at the end of an epoch."""
        if self._progress is None:
            return
        progress = trainer.progress
        if progress.epoch != self._shown_epoch:
            self._shown_epoch = progress.epoch
            seconds, self._epoch_began = time.monotonic() - self._epoch_began, time.monotonic()
            line(_epoch_line(trainer, seconds))
            self._progress.reset(self._bar, epoch=progress.epoch + 1, said="")  # all fields: it forgets the others
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
        """Print how the training ended, its newest checkpoint and the next commands."""
        self.finish()
        line(f"Ended: {outcome.why}.")
        if outcome.best is not None:
            shown = ", ".join(f"{k} {v:.4g}" for k, v in outcome.best.metrics.items() if k.startswith("val/"))
            line(f"Best: {outcome.best.title} ({outcome.best.name}){': ' + shown if shown else ''}")
        if outcome.newest is not None:
            line(f"Newest checkpoint: {outcome.newest.name} ({outcome.newest.size / 1e6:.1f} MB)")
        if outcome.lost:
            line(f"{outcome.lost} records (metric points, tags or files) are LOST: neither server nor disk took them.")
        if not outcome.known:
            line(
                "The tracking store never answered: there is no run yet. Create it, and send everything, with: mltrain sync"
            )
            line("Resume, Evaluate and Pull work after that.")
            return
        if outcome.only_local:
            line(
                f"The newest checkpoint is on this machine only ({fingerprint.host()}): the artifact store has not taken it. "
                "Send it with: mltrain sync"
            )
            line("Or resume on this machine. A resume elsewhere begins from an older checkpoint.")
        if not outcome.delivered and not outcome.lost:
            line(f"Some records are still on this disk only{_because(outcome.trouble)}. Send them with: mltrain sync")
        line(f"Resume:   mltrain train --resume-run {outcome.run_id}")
        if outcome.lost:
            line("A resume records again what the newest checkpoint carries of the lost metric points.")
        if outcome.exit_code not in (STOPPED, STOPPED_STAGED):
            line(f"Evaluate: mltrain evaluate {outcome.run_id} --to evaluation")
            line(f"Pull:     mltrain pull {outcome.run_id} --to model")
        if not self._page_shown:
            line(f"Look:     mltrain ui {outcome.run_id}")


def _epoch_line(trainer: "Trainer", seconds: float) -> str:
    row = trainer.history.rows[-1]
    wanted = [trainer.config.best_metric, "train/loss", "val/loss"]
    names = list(dict.fromkeys(name for name in (*wanted, *row) if name in row and "/" in name))[:_MOST_COLUMNS]
    figures = "  ".join(f"{name} {row[name]:.4f}" for name in names)
    rate = f"  lr {row['learning_rate']:.2e}" if "learning_rate" in row else ""
    star = " *" if trainer.best.epoch == trainer.progress.epoch else ""
    return f"epoch {row['epoch']:>4}/{trainer.config.epochs}  {figures}{rate}  {seconds:.1f} s{star}"


def _because(trouble: str | None) -> str:
    return f" ({trouble.rstrip('.')})" if trouble else ""


def line(text: str) -> None:
    """Print a line; ignore a closed pipe, such as that of ``| head``."""
    try:
        print(harmless(text), flush=True)
    except (BrokenPipeError, ValueError, OSError):
        sys.stdout = open("/dev/null" if sys.platform != "win32" else "nul", "w", encoding="utf-8")  # noqa: SIM115, PTH123
