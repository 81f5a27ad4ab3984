"""Runs a pipeline stage by stage."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from mltrain.checkpoint.ports import Status
from mltrain.commands.checks import refuse_unusable
from mltrain.commands.result import STOPPED, STOPPED_STAGED, Outcome
from mltrain.commands.train import run_training
from mltrain.commands.train_request import Request
from mltrain.errors import MltrainError, RunHeld, UsageError
from mltrain.ownership import launcher as launchers
from mltrain.ownership.attempts import CONFIG_FILE, holder_of
from mltrain.ownership.liveness import same
from mltrain.ownership.run_folder import grace_seconds
from mltrain.pipeline import Stage
from mltrain.pipelines.cleanup import Clearing, clear, plan_clearing
from mltrain.pipelines.decisions import Decision, StageMode, decide
from mltrain.pipelines.event_log import LoggedStage
from mltrain.pipelines.file_stage import Making, make
from mltrain.pipelines.inspection import handed_on, recipe_of, recipe_tags, survey
from mltrain.pipelines.plan import Confirm, PipelineDisplay, PipelineRequest, Planned, Result, planned
from mltrain.pipelines.status import status
from mltrain.run import adoption, opening
from mltrain.run.naming import experiment_for, run_name
from mltrain.run.stage_outputs import Output, described, fetched
from mltrain.run.tracked import TrackedRun
from mltrain.signals import StopRequest
from mltrain.tracking.client import TRAINING_RETRY_SECONDS, TrackingClient, connect
from mltrain.tracking.pages import location
from mltrain.tracking.tags import MLFLOW_PARENT, PIPELINE_TAG, STAGE_INPUTS_TAG, STAGE_TAG


def run(request: PipelineRequest, display: PipelineDisplay, confirm: Confirm) -> Result:
    """Run the stages of a pipeline as requested.

    Raises:
        MltrainError: a stage failed; every run that is open is closed as FAILED.
    """
    launcher = launchers.detect(os.environ)
    server, pipeline = connect(retry_seconds=TRAINING_RETRY_SECONDS), request.located.pipeline
    with StopRequest(launcher_pid=launcher.pid if launcher is not None else None) as stop:
        found = planned(server, request)
        parent = found.parent
        for stage in pipeline.stages:
            if stage.build is not None and stage.name not in found.plan.used:
                refuse_unusable(found.configs[stage.name], server)
        if parent is None and launcher is not None:
            adoption.adoptable(server, launcher)
        _check(server, request, found)
        again = request.again
        cleared = plan_clearing(server, pipeline, parent, again) if parent is not None and again else []
        if parent is not None and cleared and not confirm(cleared):
            return Result(parent.info.run_id, 0, "nothing was cleared and nothing was run")
        name, word = next(iter(found.configs.values())).run_name, request.located.word
        if parent is not None:
            tracked = opening.resume(server, parent.info.run_id, take_over=request.take_over, launcher=launcher)
        elif launcher is not None:
            generated = run_name(pipeline.name, request.preset, request.overrides)
            tracked = adoption.adopt(server, launcher, name, word, {PIPELINE_TAG: pipeline.name}, fallback=generated)
        else:
            name = name or run_name(pipeline.name, request.preset, request.overrides)
            experiment = experiment_for(pipeline.name, request.overrides.get("experiment"))
            tracked = opening.create(server, experiment, name, word, {PIPELINE_TAG: pipeline.name})
        return _Session(request, found, server, tracked, stop, display, cleared).run()


def _check(server: TrackingClient, request: PipelineRequest, found: Planned) -> None:
    """Refuse unusable ``--use`` runs and a stage without inputs."""
    pipeline, only = request.located.pipeline, request.only
    for name in request.use:
        handed_on(server, pipeline.stage(name), found.plan.used[name])
    if only is None:
        return
    needed = set(pipeline.stage(only).needs.values())
    rows = status(server, pipeline, found, "resume") if needed else []
    lacking = [f"{row.stage} ({row.state})" for row in rows if row.stage in needed and row.next != "skip"]
    if lacking:
        parent = f" --run {found.parent.info.run_id}" if found.parent is not None else ""
        raise UsageError(
            f"The stage {only!r} needs {', '.join(lacking)}. "
            f"Try: mltrain pipeline {request.located.word}{parent} --mode resume"
        )


@dataclass
class _Session:
    """One attempt at a pipeline, until its run is closed."""

    request: PipelineRequest
    planned: Planned
    server: TrackingClient
    tracked: TrackedRun
    stop: StopRequest
    display: PipelineDisplay
    cleared: list[Clearing]
    outputs: dict[str, Output] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    runs: dict[str, str] = field(default_factory=dict)
    experiment: str = ""

    def run(self) -> Result:
        try:
            self._record()  # first, so that the printed id is enough to resume
            where = location(self.server, self.tracked.identity.experiment_id, self.tracked.id)
            self.display.opened(self.tracked, where, new=self.planned.parent is None)
            experiment = self.server.once.get_experiment(self.tracked.identity.experiment_id)
            self.experiment = str(experiment.name)
            return self._closed(*self._stages())
        except KeyboardInterrupt:
            code = STOPPED if self.outputs else self.stop.exit_code
            return self._closed("KILLED", code, f"stopped by {self.stop.reason}")
        except BaseException as error:
            self.tracked.close("FAILED", f"{type(error).__name__}: {error}"[:500], grace_seconds())
            if not isinstance(error, MltrainError):
                error.add_note(f"Resume: mltrain pipeline --run {self.tracked.id} --mode resume")
            raise

    def _record(self) -> None:
        word = self.request.located.word
        if self.planned.parent is None:
            self.tracked.record_start(
                self.planned.plan.as_json(), {"pipeline": self.request.located.pipeline.name}, word
            )
        else:
            self.tracked.write_json(CONFIG_FILE, {"schema": 1, "project": word, "config": self.planned.plan.as_json()})
        self.tracked.record.attempt()

    def _stages(self) -> tuple[Status, int, str]:
        pipeline, request = self.request.located.pipeline, self.request
        for number, stage in enumerate(pipeline.stages, 1):
            self.stop.expect_no_steps()
            if self.tracked.overtaken:
                raise RunHeld("Another process has taken this pipeline over, so this one stops.")
            outcome = self._stage(stage, number)
            failed = 0 if outcome is None else outcome.exit_code or (STOPPED_STAGED if outcome.only_local else 0)
            if outcome is not None and failed:
                stopped = failed in (STOPPED, STOPPED_STAGED, self.stop.exit_code)
                code = STOPPED if failed == self.stop.exit_code and self.outputs else failed
                return "KILLED" if stopped else "FAILED", code, f"{stage.name}: {outcome.why}"
        missing = [stage.name for stage in pipeline.stages if stage.name not in self.outputs]
        if missing:
            return "KILLED", 0, f"{request.only} is done; still to run: {', '.join(missing)}"
        return "FINISHED", 0, "all stages done"

    def _stage(self, stage: Stage, number: int) -> Outcome | None:
        request = self.request
        given = self.planned.plan.used.get(stage.name)
        if given is not None:
            self.outputs[stage.name] = handed_on(self.server, stage, given)
            self._decide(Decision(stage.name, "skip", f"given: run {given}", given), number)
            return None
        aside = request.only is not None and request.only != stage.name
        if aside and not self.outputs.keys() >= set(stage.needs.values()):
            return None
        inputs = {key: self.outputs[name] for key, name in stage.needs.items()}
        recipe = recipe_of(stage, self.planned.configs[stage.name], inputs)
        mode: StageMode = "scratch" if stage.name in request.again else "resume" if aside else request.mode
        found = survey(self.server, self.server.run(self.tracked.id), stage, recipe, mode)
        decision = decide(stage, found.found, mode)
        if decision.action == "skip" and found.output is not None and decision.run_id is not None:
            self.outputs[stage.name] = found.output
            if not aside:
                self._decide(decision, number)
            self.runs[stage.name] = decision.run_id
            return None
        if aside:
            return None
        self._decide(decision, number)
        while self.cleared and stage.name in request.again:  # only once its inputs exist
            clear(self.server, self.cleared.pop(0))
        tags = {
            PIPELINE_TAG: request.located.pipeline.name,
            STAGE_TAG: stage.name,
            MLFLOW_PARENT: self.tracked.id,
            STAGE_INPUTS_TAG: described(inputs),
            **recipe_tags(recipe),
        }
        folders = {key: str(fetched(self.server, output)) for key, output in inputs.items()}
        outcome = self._done(stage, decision, folders, tags)
        self.runs[stage.name] = outcome.run_id
        if outcome.exit_code == 0 and not outcome.only_local:  # the next stage reads from the store
            self.outputs[stage.name] = handed_on(self.server, stage, outcome.run_id)
        return outcome

    def _done(self, stage: Stage, decision: Decision, folders: Mapping[str, str], tags: Mapping[str, str]) -> Outcome:
        request, config = self.request, self.planned.configs[stage.name]
        name = f"{config.run_name or request.located.pipeline.name}-{stage.name}"
        config = type(config).load(
            base={**config.resolved(), **folders, "experiment": self.experiment, "run_name": name}
        )
        take_over = request.take_over or self._died_with_the_pipeline(decision.run_id)
        with LoggedStage(stage.name, self.display.stage(stage.name)) as display:
            if stage.make is not None:
                making = Making(
                    stage=stage,
                    config=config,
                    project=f"{request.located.word}:{stage.name}",
                    tags=tags,
                    resume_run=decision.run_id,
                    take_over=take_over,
                )
                return make(making, self.server, display, self.stop)
            training = Request(
                project=request.located.project(stage.name),
                config=config,
                resume_run=decision.run_id,
                tags=tags,
                take_over=take_over,
                allow_change=request.allow_change,
            )
            return run_training(training, display, self.stop)

    def _died_with_the_pipeline(self, run_id: str | None) -> bool:
        """Whether the pipeline's dead holder also held this run."""
        holder = holder_of(self.planned.parent) if self.planned.parent is not None else {}
        if run_id is None or not holder:
            return False
        return same(holder_of(self.server.run(run_id)), holder)

    def _decide(self, decision: Decision, number: int) -> None:
        self.decisions.append(decision)
        self.display.decided(decision, number, len(self.request.located.pipeline.stages))

    def _closed(self, status: Status, code: int, why: str) -> Result:
        lines = [
            f"| {d.stage} | {d.action} | {d.why} | {self.runs.get(d.stage, d.run_id or '')} |" for d in self.decisions
        ]
        table = ["| stage | | why | run |", "| --- | --- | --- | --- |", *lines]
        again = f"mltrain pipeline {self.request.located.word} --run {self.tracked.id} --mode resume"
        self.tracked.set_tag("mlflow.note.content", "\n".join([f"Pipeline: {why}.", "", *table, "", f"`{again}`"]))
        self.tracked.close(status, why, grace_seconds())
        self.tracked.require_hold()
        result = Result(self.tracked.id, code, why, tuple(self.decisions), dict(self.runs))
        self.display.ended(result)
        return result
