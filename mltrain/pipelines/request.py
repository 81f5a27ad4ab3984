"""What to do with a pipeline, and how it ended."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mltrain.commands.result import Display
from mltrain.errors import UsageError
from mltrain.pipelines.cleanup import Clearing
from mltrain.pipelines.decisions import Decision, StageMode
from mltrain.project import Located

if TYPE_CHECKING:
    from mltrain.run.tracked import TrackedRun


@dataclass(frozen=True, kw_only=True)
class PipelineRequest:
    """What to do with a pipeline.

    Attributes:
        located: the pipeline.
        mode: see :func:`mltrain.pipelines.decisions.decide`.
        run: id of the pipeline's run, or of a stage's run, to continue; ``new`` begins another one. If ``None``, the newest
            run of this user.
        start: clear and run this stage and every stage that builds on it.
        only: run only this stage; the mode ``scratch`` clears it first.
        use: for each stage that is not run, the run that takes its place.
        preset: a preset over the configuration.
        files: configuration files with a section a stage.
        overrides: ``key`` or ``stage.key``, over all else; a ``key`` counts for all stages, with ``only`` for that one.
        take_over: do not wait for a lease holder on another machine to expire.
        allow_change: continue a training although its data have changed.
    """

    located: Located
    mode: StageMode
    run: str | None = None
    start: str | None = None
    only: str | None = None
    use: Mapping[str, str] = field(default_factory=dict)
    preset: str | None = None
    files: Sequence[Path] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    take_over: bool = False
    allow_change: bool = False

    def __post_init__(self) -> None:
        if self.start is not None and self.only is not None:
            raise UsageError("--from runs a stage and what builds on it, --stage runs one alone. Give one of the two.")
        if self.start is not None and self.mode == "scratch":
            raise UsageError("--mode scratch runs every stage anew, so --from adds nothing. Give one of the two.")
        for name in (*self.use, *filter(None, (self.start, self.only))):
            self.located.pipeline.stage(name)
        if both := self.use.keys() & self.again:
            raise UsageError(f"{', '.join(sorted(both))} cannot be run anew and be given by --use at once.")

    @property
    def again(self) -> frozenset[str]:
        """The stages to clear and run anew."""
        pipeline = self.located.pipeline
        if self.start is not None:
            return pipeline.after(self.start)
        if self.mode == "scratch":
            return frozenset({self.only} if self.only is not None else {stage.name for stage in pipeline.stages})
        return frozenset()


@dataclass(frozen=True)
class Result:
    """How a pipeline ended: its run, exit code, reason, decisions, and each stage's run."""

    run_id: str | None
    exit_code: int
    why: str
    decisions: Sequence[Decision] = ()
    stages: Mapping[str, str] = field(default_factory=dict)


class PipelineDisplay(Protocol):
    """What a pipeline shows while it runs."""

    def opened(self, run: "TrackedRun", where: str, *, new: bool) -> None:
        """Show the pipeline's run, which is open now."""
        ...

    def decided(self, decision: Decision, number: int, count: int) -> None:
        """Show the decision about a stage."""
        ...

    def stage(self, name: str) -> Display:
        """Return the display of the stage that runs now."""
        ...

    def ended(self, result: Result) -> None:
        """Show the result; the pipeline's run is closed."""
        ...


Confirm = Callable[[Sequence[Clearing]], bool]
"""Asked before anything is cleared."""
