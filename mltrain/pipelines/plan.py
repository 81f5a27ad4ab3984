"""The request to a pipeline, its plan and its result."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltrain.commands.result import Display
from mltrain.config import Config
from mltrain.errors import MltrainError, RunNotFound, UsageError
from mltrain.ownership.attempts import recorded_config
from mltrain.pipeline import Pipeline
from mltrain.pipelines.cleanup import Clearing
from mltrain.pipelines.decisions import Decision, StageMode
from mltrain.pipelines.pipeline_run import children, chosen_parent
from mltrain.project import Located
from mltrain.run.checkpoints import checkpoints_of, trained_config
from mltrain.run.naming import full_id
from mltrain.store.opening import UnusableArtifacts
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.run_artifacts import artifacts_of

if TYPE_CHECKING:
    from mltrain.run.tracked import TrackedRun


@dataclass(frozen=True, kw_only=True)
class PipelineRequest:
    """A request to run a pipeline.

    Attributes:
        located: the pipeline.
        mode: see :func:`mltrain.pipelines.decisions.decide`.
        run: id of the pipeline's run, or of a stage's run, to continue; ``new`` begins another one. If ``None``, this user's
            newest run.
        start: clear and run this stage and every stage that depends on it.
        only: run only this stage; the mode ``scratch`` clears it first.
        use: for each stage not to be run, the run whose output to use.
        preset: name of an overlay of the configuration.
        files: configuration files with a section for each stage.
        overrides: ``key`` or ``stage.key``, which override all others; a ``key`` applies to all stages, or to ``only``.
        take_over: whether to take runs over without waiting for their holders' leases to expire.
        allow_change: whether to continue a training although its data have changed.
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
            raise UsageError(
                "--from runs a stage and those that depend on it, --stage only one. Expected one of the two."
            )
        if self.start is not None and self.mode == "scratch":
            raise UsageError("--mode scratch runs every stage again, so --from has no effect. Expected one of the two.")
        for name in (*self.use, *filter(None, (self.start, self.only))):
            self.located.pipeline.stage(name)
        if both := self.use.keys() & self.again:
            raise UsageError(
                f"{', '.join(sorted(both))} cannot run again and be replaced by --use. Expected one of the two."
            )

    @property
    def again(self) -> frozenset[str]:
        """The stages to clear and run again."""
        pipeline = self.located.pipeline
        if self.start is not None:
            return pipeline.after(self.start)
        if self.mode == "scratch":
            return frozenset({self.only} if self.only is not None else {stage.name for stage in pipeline.stages})
        return frozenset()


@dataclass(frozen=True)
class Result:
    """A pipeline's run, exit code, reason, decisions and stage runs."""

    run_id: str | None
    exit_code: int
    why: str
    decisions: Sequence[Decision] = ()
    stages: Mapping[str, str] = field(default_factory=dict)


class PipelineDisplay:
    """Shows nothing; subclasses show the pipeline as it runs."""

    def opened(self, run: "TrackedRun", where: str, *, new: bool) -> None:
        """The pipeline's run is open."""

    def decided(self, decision: Decision, number: int, count: int) -> None:
        """A stage is skipped, resumed or run."""

    def stage(self, name: str) -> Display:
        """Return the display of a stage."""
        return Display()

    def ended(self, result: Result) -> None:
        """The pipeline's run is closed."""


Confirm = Callable[[Sequence[Clearing]], bool]
"""Called before anything is cleared; ``False`` cancels the pipeline."""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a pipeline's run records of its request.

    Attributes:
        configs: for each stage its resolved configuration.
        used: for each stage that ``--use`` replaces, the run to use.
    """

    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    used: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for ``config.json`` of the pipeline's run."""
        return {"stages": dict(self.configs), "used": dict(self.used)}


def recorded_plan(server: TrackingClient, pipeline: Pipeline, parent: Any) -> Plan:
    """Return the recorded plan, if necessary rebuilt from the stages.

    Raises:
        StorageError: the artifacts of the run and of all its stages are unreachable.
    """
    unusable: UnusableArtifacts | None
    try:
        config = recorded_config(artifacts_of(server, parent))["config"]
        names = {stage.name for stage in pipeline.stages}
        stages = {name: dict(one) for name, one in config["stages"].items() if name in names}
        return Plan(stages, {str(name): str(run) for name, run in config["used"].items() if name in names})
    except UnusableArtifacts as error:
        unusable = error
    except (RunNotFound, KeyError, TypeError, ValueError, AttributeError):
        unusable = None
    found: dict[str, Mapping[str, Any]] = {}
    for stage in pipeline.stages:
        for run in children(server, parent, stage.name):
            try:
                recorded = trained_config(checkpoints_of(server, run))
            except MltrainError:
                continue
            found[stage.name] = {**recorded, **dict.fromkeys(stage.needs)}
            break
    if unusable is not None and not found:
        raise unusable
    log.warning(
        "The plan of pipeline run %s is missing or damaged. It is rebuilt from the runs of its stages (%s). Repeat every --use.",
        parent.info.run_id,
        ", ".join(found) or "it has none, so the defaults apply",
    )
    return Plan(found)


@dataclass(frozen=True)
class Planned:
    """A request resolved against the pipeline's run.

    Attributes:
        parent: the pipeline's run. If ``None``, the pipeline has not run yet.
        configs: the configuration of each stage.
        plan: what the run records.
    """

    parent: Any | None
    configs: Mapping[str, Config]
    plan: Plan


def planned(server: TrackingClient, request: PipelineRequest) -> Planned:
    """Return the run of a request and each stage's configuration.

    Raises:
        RunNotFound: the id is not that of a pipeline's run.
        UsageError: the run belongs to another pipeline, or the configuration is invalid.
    """
    pipeline, overrides = request.located.pipeline, dict(request.overrides)
    parent = chosen_parent(server, pipeline, request.run, overrides.pop("experiment", None))
    before = recorded_plan(server, pipeline, parent) if parent is not None else Plan()
    if request.only is not None:
        overrides = {pipeline.within(request.only, key): value for key, value in overrides.items()}
    configs = pipeline.configs(files=request.files, preset=request.preset, overrides=overrides, base=before.configs)
    chosen = {name: full_id(server, run) for name, run in request.use.items()}
    used = {name: run for name, run in {**before.used, **chosen}.items() if name not in request.again}
    return Planned(parent, configs, Plan({name: config.resolved() for name, config in configs.items()}, used))
