"""What a pipeline shows on a terminal: a line a decision, and each stage as a training shows itself."""

from mltrain.cli.display import Terminal, line
from mltrain.commands.result import Display, Outcome, Silence
from mltrain.pipelines.decisions import Decision
from mltrain.pipelines.event_log import LOG_FILE
from mltrain.pipelines.request import Result
from mltrain.run.tracked import TrackedRun


class TerminalStage(Terminal):
    """A training as a stage: its run is named, and what comes next is the pipeline's affair."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def resuming(self, run_id: str) -> None:
        """Show nothing: the run is named when it is open."""

    def opened(self, run: TrackedRun, where: str) -> None:
        """Say which run it is and where its log grows."""
        line(f"  run {run.id}; follow it with: tail -f {run.home / LOG_FILE}")

    def ended(self, outcome: Outcome) -> None:
        """Say how it ended and what its best checkpoint is."""
        self.finish()
        line(f"  {self._stage}: {outcome.why}")
        if outcome.best is not None:
            figures = ", ".join(f"{k} {v:.4g}" for k, v in outcome.best.metrics.items() if k.startswith("val/"))
            line(f"  best: {outcome.best.title} ({outcome.best.name}){': ' + figures if figures else ''}")
        elif outcome.metrics:
            line("  " + ", ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items()))


class TerminalPipeline:
    """Shows a pipeline to a person."""

    def opened(self, run: TrackedRun, where: str, *, new: bool) -> None:
        """Say where the run is kept, whether it is gone on with, and print its id on a line of its own."""
        line(where)
        line(f"{'New' if new else 'Going on with'} run {run.identity.name} (attempt {run.ordinal})")
        line(f"run_id={run.id}")

    def decided(self, decision: Decision, number: int, count: int) -> None:
        """Say what will be done, and why."""
        line(f"[{number}/{count}] {decision.stage}: {decision.action} ({decision.why})")

    def stage(self, name: str) -> Display:
        """Return the display of a training."""
        return TerminalStage(name)

    def ended(self, result: Result) -> None:
        """Say how it ended and what can be done next."""
        line(f"Ended: {result.why}.")
        line(f"Status: mltrain pipeline --run {result.run_id} --status")
        if result.exit_code:
            line(f"Resume: mltrain pipeline --run {result.run_id} --mode resume")
        for stage, run_id in list(result.stages.items())[-1:] if result.exit_code == 0 else ():
            line(f"Evaluate {stage}: mltrain evaluate {run_id} --to evaluation")


class QuietPipeline:
    """Shows nothing: the result is printed as JSON."""

    def opened(self, run: TrackedRun, where: str, *, new: bool) -> None:
        """Show nothing."""

    def decided(self, decision: Decision, number: int, count: int) -> None:
        """Show nothing."""

    def stage(self, name: str) -> Display:
        """Return what shows nothing."""
        return Silence()

    def ended(self, result: Result) -> None:
        """Show nothing."""
