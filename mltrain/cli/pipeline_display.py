"""Shows a pipeline on a terminal: its decisions, its stages, its status and its result."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mltrain.cli.display import Terminal, line
from mltrain.cli.tables import table
from mltrain.commands.result import Display, Outcome, Silence
from mltrain.pipelines.decisions import Decision
from mltrain.pipelines.event_log import LOG_FILE
from mltrain.pipelines.request import Result
from mltrain.pipelines.status import Row, shown

if TYPE_CHECKING:
    from mltrain.run.tracked import TrackedRun


class TerminalStage(Terminal):
    """Shows the training of a stage."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def resuming(self, run_id: str) -> None:
        """Show nothing; ``opened`` names the run."""

    def opened(self, run: "TrackedRun", where: str) -> None:
        """Print the run's id and the path of its log."""
        line(f"  run {run.id}; follow it with: tail -f {run.home / LOG_FILE}")

    def ended(self, outcome: Outcome) -> None:
        """Print how the stage ended and its best checkpoint."""
        self.finish()
        line(f"  {self._stage}: {outcome.why}")
        if outcome.best is not None:
            figures = ", ".join(f"{k} {v:.4g}" for k, v in outcome.best.metrics.items() if k.startswith("val/"))
            line(f"  best: {outcome.best.title} ({outcome.best.name}){': ' + figures if figures else ''}")
        elif outcome.metrics:
            line("  " + ", ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items()))


class TerminalPipeline:
    """Shows a pipeline to a person."""

    def opened(self, run: "TrackedRun", where: str, *, new: bool) -> None:
        """Print where the run is stored, whether it is new, and its id on a line of its own."""
        line(where)
        line(f"{'New' if new else 'Resuming'} run {run.identity.name} (attempt {run.ordinal})")
        line(f"run_id={run.id}")

    def decided(self, decision: Decision, number: int, count: int) -> None:
        """Print the decision about a stage, and why."""
        line(f"[{number}/{count}] {decision.stage}: {decision.action} ({decision.why})")

    def stage(self, name: str) -> Display:
        """Return the display of a training."""
        return TerminalStage(name)

    def ended(self, result: Result) -> None:
        """Print how the pipeline ended and the next commands."""
        line(f"Ended: {result.why}.")
        line(f"Status: mltrain pipeline --run {result.run_id} --status")
        if result.exit_code:
            line(f"Resume: mltrain pipeline --run {result.run_id} --mode resume")
        for stage, run_id in list(result.stages.items())[-1:] if result.exit_code == 0 else ():
            line(f"Evaluate {stage}: mltrain evaluate {run_id} --to evaluation")


class QuietPipeline:
    """Shows nothing, because the result is printed as JSON."""

    def opened(self, run: "TrackedRun", where: str, *, new: bool) -> None:
        """Show nothing."""

    def decided(self, decision: Decision, number: int, count: int) -> None:
        """Show nothing."""

    def stage(self, name: str) -> Display:
        """Return a display that shows nothing."""
        return Silence()

    def ended(self, result: Result) -> None:
        """Show nothing."""


def print_result(result: Result) -> None:
    """Print how a pipeline ended, as JSON."""
    stages = [
        {"stage": d.stage, "action": d.action, "why": d.why, "run_id": result.stages.get(d.stage, d.run_id)}
        for d in result.decisions
    ]
    facts = {"run_id": result.run_id, "exit_code": result.exit_code, "why": result.why, "stages": stages}
    print(json.dumps(facts, indent=1))


def print_status(about: Mapping[str, Any], rows: Sequence[Row], as_json: bool) -> None:
    """Print the pipeline's run and the state of every stage, as a table or as JSON."""
    if as_json:
        facts = {key: about.get(key) for key in ("pipeline", "run_id", "name", "state", "started")}
        print(json.dumps({**facts, "stages": [row.as_json() for row in rows]}, indent=1))
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
