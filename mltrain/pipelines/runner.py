"""Running a pipeline: decide about every stage in its turn, do it, and close the pipeline's run with its true status."""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mltrain.checkpoint.ports import Status
from mltrain.commands.result import STOPPED, STOPPED_STAGED, Outcome
from mltrain.commands.train import refuse_unusable, train
from mltrain.commands.train_request import Request
from mltrain.config import Config
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
from mltrain.pipelines.pipeline_run import PARENT_TAG, Plan, chosen_parent, recorded_plan
from mltrain.pipelines.request import Confirm, Order, PipelineDisplay, Result
from mltrain.pipelines.status import status
from mltrain.run import opening
from mltrain.run.stage_outputs import Output, described, fetched
from mltrain.run.tracked import TrackedRun
from mltrain.signals import StopRequest
from mltrain.tracking.client import TRAINING_RETRY_SECONDS, TrackingClient, connect, location
from mltrain.tracking.tags import PIPELINE_TAG, STAGE_INPUTS_TAG, STAGE_TAG


def run(order: Order, display: PipelineDisplay, confirm: Confirm) -> Result:
    """Do what is ordered.

    Raises:
        MltrainError: what cannot be done; the runs that there are by then are closed as FAILED.
    """
    launcher = launchers.detect(os.environ)
    server, pipeline = connect(retry_seconds=TRAINING_RETRY_SECONDS), order.located.pipeline
    overrides = dict(order.overrides)
    experiment = overrides.pop("experiment", None)
    with StopRequest(launcher_pid=launcher.pid if launcher is not None else None) as stop:
        parent = chosen_parent(server, pipeline, order.run, experiment)
        before = recorded_plan(server, pipeline, parent) if parent is not None else Plan()
        if order.only is not None:
            overrides = {pipeline.within(order.only, key): value for key, value in overrides.items()}
        configs = pipeline.configs(files=order.files, preset=order.preset, overrides=overrides, base=before.configs)
        used = {
            name: run
            for name, run in {**before.used, **order.use}.items()
            if run is not None and name not in order.again
        }
        plan = Plan({name: config.resolved() for name, config in configs.items()}, used)
        for stage in pipeline.stages:
            if stage.build is not None and stage.name not in used:
                refuse_unusable(configs[stage.name], server)
        if parent is None and launcher is not None:
            opening.adoptable(server, launcher)
        _check(server, order, parent, configs, plan)
        cleared = plan_clearing(server, pipeline, parent, order.again) if parent is not None and order.again else []
        if parent is not None and cleared and not confirm(cleared):
            return Result(parent.info.run_id, 0, "nothing was cleared and nothing was run")
        name, word = next(iter(configs.values())).run_name, order.located.word
        if parent is not None:
            tracked = opening.resume(server, parent.info.run_id, take_over=order.take_over, launcher=launcher)
        elif launcher is not None:
            tracked = opening.adopt(server, launcher, name, word, {PIPELINE_TAG: pipeline.name})
        else:
            name = name or f"{pipeline.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
            tracked = opening.create(server, experiment, name, word, {PIPELINE_TAG: pipeline.name})
        holder = holder_of(parent) if parent is not None else {}
        return _Session(order, plan, configs, server, tracked, stop, display, cleared, holder).run(new=parent is None)


def _check(server: TrackingClient, order: Order, parent: Any | None, configs: Mapping[str, Config], plan: Plan) -> None:
    """Refuse, before any run is touched, runs that cannot be used, and a single stage that lacks what it needs."""
    pipeline = order.located.pipeline
    for name, run_id in order.use.items():
        if run_id is not None:
            handed_on(server, pipeline.stage(name), run_id)
    if order.only is None:
        return
    needed = set(pipeline.stage(order.only).needs.values())
    rows = status(server, pipeline, parent, configs, plan, "resume") if needed else []
    lacking = [f"{row.stage} ({row.state})" for row in rows if row.stage in needed and row.next != "skip"]
    if lacking:
        raise UsageError(
            f"The stage {order.only!r} needs {', '.join(lacking)}. Run it first: mltrain pipeline {order.located.word}"
            f"{f' --run {parent.info.run_id}' if parent is not None else ''} --mode resume"
        )


class _Session:
    """One attempt at a pipeline, from the open run to the closed one."""

    def __init__(
        self,
        order: Order,
        plan: Plan,
        configs: Mapping[str, Config],
        server: TrackingClient,
        tracked: TrackedRun,
        stop: StopRequest,
        display: PipelineDisplay,
        cleared: Sequence[Clearing],
        holder: Mapping[str, Any],
    ) -> None:
        self._order = order
        self._plan = plan
        self._configs = configs
        self._server = server
        self._tracked = tracked
        self._stop = stop
        self._display = display
        self._cleared = list(cleared)
        self._holder = holder
        self._outputs: dict[str, Output] = {}
        self._decisions: list[Decision] = []
        self._runs: dict[str, str] = {}
        self._experiment = ""

    def run(self, *, new: bool) -> Result:
        try:
            self._record(new)  # before its id is told: who has that can go on with it
            where = location(self._server, self._tracked.identity.experiment_id, self._tracked.id)
            self._display.opened(self._tracked, where, new=new)
            experiment = self._server.once.get_experiment(self._tracked.identity.experiment_id)
            self._experiment = str(experiment.name)
            return self._closed(*self._stages())
        except KeyboardInterrupt:
            code = STOPPED if self._outputs else self._stop.exit_code
            return self._closed("KILLED", code, f"stopped by {self._stop.reason}")
        except BaseException as error:
            self._tracked.close("FAILED", f"{type(error).__name__}: {error}"[:500], grace_seconds())
            if not isinstance(error, MltrainError):
                error.add_note(f"Go on with: mltrain pipeline --run {self._tracked.id} --mode resume")
            raise

    def _record(self, new: bool) -> None:
        word = self._order.located.word
        if new:
            self._tracked.record_start(self._plan.as_json(), {"pipeline": self._order.located.pipeline.name}, word)
        else:
            self._tracked.write_json(CONFIG_FILE, {"schema": 1, "project": word, "config": self._plan.as_json()})
        self._tracked.record.attempt()

    def _stages(self) -> tuple[Status, int, str]:
        pipeline, order = self._order.located.pipeline, self._order
        for number, stage in enumerate(pipeline.stages, 1):
            self._stop.expect_no_steps()
            if self._tracked.overtaken:
                raise RunHeld("Another process has taken this pipeline over; this one stops.")
            outcome = self._stage(stage, number)
            failed = 0 if outcome is None else outcome.exit_code or (STOPPED_STAGED if outcome.only_local else 0)
            if outcome is not None and failed:
                stopped = failed in (STOPPED, STOPPED_STAGED, self._stop.exit_code)
                code = STOPPED if failed == self._stop.exit_code and self._outputs else failed
                return "KILLED" if stopped else "FAILED", code, f"{stage.name}: {outcome.why}"
        missing = [stage.name for stage in pipeline.stages if stage.name not in self._outputs]
        if missing:
            return "KILLED", 0, f"{order.only} is done; to be run: {', '.join(missing)}"
        return "FINISHED", 0, "all stages done"

    def _stage(self, stage: Stage, number: int) -> Outcome | None:
        order, count = self._order, len(self._order.located.pipeline.stages)
        given = self._plan.used.get(stage.name)
        if given is not None:
            self._outputs[stage.name] = handed_on(self._server, stage, given)
            self._decide(Decision(stage.name, "skip", f"given: run {given}", given), number, count)
            return None
        aside = order.only is not None and order.only != stage.name
        if aside and not self._outputs.keys() >= set(stage.needs.values()):
            return None
        inputs = {key: self._outputs[name] for key, name in stage.needs.items()}
        recipe = recipe_of(stage, self._configs[stage.name], inputs)
        mode: StageMode = "scratch" if stage.name in order.again else "resume" if aside else order.mode
        found = survey(self._server, self._server.run(self._tracked.id), stage, recipe, mode)
        decision = decide(stage, found.found, mode)
        if decision.action == "skip" and found.output is not None and decision.run_id is not None:
            self._outputs[stage.name] = found.output
            if not aside:
                self._decide(decision, number, count)
            self._runs[stage.name] = decision.run_id
            return None
        if aside:
            return None
        self._decide(decision, number, count)
        while self._cleared and stage.name in order.again:  # only now that what it needs is there
            clear(self._server, self._cleared.pop(0))
        tags = {
            PIPELINE_TAG: order.located.pipeline.name,
            STAGE_TAG: stage.name,
            PARENT_TAG: self._tracked.id,
            STAGE_INPUTS_TAG: described(inputs),
            **recipe_tags(recipe),
        }
        folders = {key: str(fetched(self._server, output)) for key, output in inputs.items()}
        outcome = self._done(stage, decision, folders, tags)
        self._runs[stage.name] = outcome.run_id
        if outcome.exit_code == 0 and not outcome.only_local:  # the next stage takes what is in the store
            self._outputs[stage.name] = handed_on(self._server, stage, outcome.run_id)
        return outcome

    def _done(self, stage: Stage, decision: Decision, folders: Mapping[str, str], tags: Mapping[str, str]) -> Outcome:
        order, config = self._order, self._configs[stage.name]
        name = f"{config.run_name or order.located.pipeline.name}-{stage.name}"
        config = type(config).load(
            base={**config.resolved(), **folders, "experiment": self._experiment, "run_name": name}
        )
        take_over = order.take_over or self._died_with_the_pipeline(decision.run_id)
        with LoggedStage(stage.name, self._display.stage(stage.name)) as display:
            if stage.make is not None:
                making = Making(
                    stage=stage,
                    config=config,
                    word=f"{order.located.word}:{stage.name}",
                    tags=tags,
                    resume_run=decision.run_id,
                    take_over=take_over,
                )
                return make(making, self._server, display, self._stop)
            request = Request(
                project=order.located.project(stage.name),
                config=config,
                resume_run=decision.run_id,
                tags=tags,
                take_over=take_over,
                allow_change=order.allow_change,
            )
            return train(request, display, self._stop)

    def _died_with_the_pipeline(self, run_id: str | None) -> bool:
        """Whether a stage's run was held by the very process that held the pipeline, whose end has been waited for."""
        if run_id is None or not self._holder:
            return False
        return same(holder_of(self._server.run(run_id)), self._holder)

    def _decide(self, decision: Decision, number: int, count: int) -> None:
        self._decisions.append(decision)
        self._display.decided(decision, number, count)

    def _closed(self, status: Status, code: int, why: str) -> Result:
        lines = [
            f"| {d.stage} | {d.action} | {d.why} | {self._runs.get(d.stage, d.run_id or '')} |" for d in self._decisions
        ]
        table = ["| stage | | why | run |", "| --- | --- | --- | --- |", *lines]
        again = f"mltrain pipeline {self._order.located.word} --run {self._tracked.id} --mode resume"
        self._tracked.set_tag("mlflow.note.content", "\n".join([f"Pipeline: {why}.", "", *table, "", f"`{again}`"]))
        self._tracked.close(status, why, grace_seconds())
        self._tracked.require_hold()
        result = Result(self._tracked.id, code, why, tuple(self._decisions), dict(self._runs))
        self._display.ended(result)
        return result
