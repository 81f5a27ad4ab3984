"""What somebody wants done with a pipeline, and how it ended."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mltrain.commands.result import Display
from mltrain.errors import UsageError
from mltrain.pipelines.cleanup import Clearing
from mltrain.pipelines.decisions import Decision, StageMode
from mltrain.project import Located
from mltrain.run.tracked import TrackedRun


@dataclass(frozen=True, kw_only=True)
class Order:
    """What somebody wants done with a pipeline.

    Attributes:
        located: the pipeline.
        mode: see :func:`mltrain.pipelines.decisions.decide`.
        run: the id of the pipeline's run, or of a stage's, to go on with; ``new``; none: the newest of this user.
        start: this stage, and what builds on it, is cleared and run anew.
        only: nothing but this stage is run; in the mode ``scratch`` it is cleared before.
        use: stages to be given: for each the run that takes its place; none: no longer.
        preset: over the configuration.
        files: likewise, with a section a stage.
        overrides: ``key`` or ``stage.key``, over all else; a ``key`` is for all stages, with ``only`` for that one.
        take_over: do not wait for a holder on another machine to show that it is dead.
        allow_change: continue a training although its data have changed.
    """

    located: Located
    mode: StageMode
    run: str | None = None
    start: str | None = None
    only: str | None = None
    use: Mapping[str, str | None] = field(default_factory=dict)
    preset: str | None = None
    files: Sequence[Path] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    take_over: bool = False
    allow_change: bool = False

    def __post_init__(self) -> None:
        if self.start is not None and self.only is not None:
            raise UsageError("--from runs a stage and what builds on it, --stage runs one alone: give one of the two.")
        if self.start is not None and self.mode == "scratch":
            raise UsageError("--mode scratch runs everything anew, so --from says nothing. Give one of the two.")
        for name in (*self.use, *filter(None, (self.start, self.only))):
            self.located.pipeline.stage(name)
        given = {name for name, run in self.use.items() if run is not None}
        if given & self.again:
            raise UsageError(f"{', '.join(sorted(given & self.again))}: to be run anew and given by --use at once.")

    @property
    def again(self) -> frozenset[str]:
        """The stages that are cleared and run anew."""
        pipeline = self.located.pipeline
        if self.start is not None:
            return pipeline.after(self.start)
        if self.mode == "scratch":
            return frozenset({self.only} if self.only is not None else {stage.name for stage in pipeline.stages})
        return frozenset()


@dataclass(frozen=True)
class Result:
    """How it ended: the pipeline's run, the exit code, why, what was decided, and each stage's run."""

    run_id: str | None
    exit_code: int
    why: str
    decisions: Sequence[Decision] = ()
    stages: Mapping[str, str] = field(default_factory=dict)


class PipelineDisplay(Protocol):
    """What a pipeline shows while it runs."""

    def opened(self, run: TrackedRun, where: str, *, new: bool) -> None:
        """The pipeline's run is known."""
        ...

    def decided(self, decision: Decision, number: int, count: int) -> None:
        """What will be done about a stage."""
        ...

    def stage(self, name: str) -> Display:
        """Return what shows the stage that runs now."""
        ...

    def ended(self, result: Result) -> None:
        """The pipeline's run is closed."""
        ...


Confirm = Callable[[Sequence[Clearing]], bool]
"""Asked before anything is cleared."""
