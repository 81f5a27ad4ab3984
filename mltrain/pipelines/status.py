"""The state and next action of each stage."""

from collections.abc import Sequence
from dataclasses import dataclass

from mltrain.config import Config
from mltrain.errors import MltrainError
from mltrain.ownership.run_folder import known_home
from mltrain.pipeline import Pipeline, Stage
from mltrain.pipelines.decisions import Decision, Found, StageMode, decide
from mltrain.pipelines.event_log import LOG_FILE
from mltrain.pipelines.inspection import Survey, handed_on, recipe_of, survey
from mltrain.pipelines.plan import Planned
from mltrain.run.stage_outputs import Output
from mltrain.tracking.client import TrackingClient


@dataclass(frozen=True)
class Row:
    """The state of one stage.

    Attributes:
        stage: name of the stage.
        state: ``done``, ``given``, ``missing``, ``damaged``, ``out of date``, ``running``, ``running elsewhere``,
            ``stopped``, ``failed`` or ``dead`` (killed).
        run_id: id of its run, if any.
        epoch, epochs: the trained and the requested number of epochs.
        best_metric, best: the metric that ranks checkpoints, and its best value.
        next: the mode's next action: ``skip``, ``resume`` or ``run``; ``?`` if it depends on the output of earlier stages.
        why: the reason, in words.
        log: path of its log on this machine, if it ran here.
    """

    stage: str
    state: str
    run_id: str | None
    epoch: int | None
    epochs: int | None
    best_metric: str | None
    best: float | None
    next: str
    why: str
    log: str | None


def status(server: TrackingClient, pipeline: Pipeline, planned: Planned, mode: StageMode = "skip") -> list[Row]:
    """Return a row for every stage; verify outputs, change nothing.

    Args:
        server: the tracking server.
        pipeline: the pipeline.
        planned: its run and the configuration of each stage.
        mode: the mode whose next actions are shown.
    """
    parent, configs = planned.parent, planned.configs
    outputs: dict[str, Output] = {}
    rows = []
    for stage in pipeline.stages:
        given = planned.plan.used.get(stage.name)
        if given is not None:
            rows.append(_given(server, stage, given, outputs))
            continue
        inputs = {key: outputs[name] for key, name in stage.needs.items() if name in outputs}
        known = inputs.keys() == stage.needs.keys()
        recipe = recipe_of(stage, configs[stage.name], inputs)
        seen = survey(server, parent, stage, recipe, mode) if parent is not None else Survey(None)
        decision = decide(stage, seen.found, mode)
        if known and decision.action == "skip" and seen.output is not None:
            outputs[stage.name] = seen.output
        rows.append(_row(server, stage, seen, decision, configs[stage.name], known))
    return rows


def _row(server: TrackingClient, stage: Stage, seen: Survey, decision: Decision, config: Config, known: bool) -> Row:
    found = seen.found
    lacking = not known and decision.action != "run"
    metric, best = seen.best or (None, None)
    return Row(
        stage.name,
        _state(found),
        found.run_id if found is not None else None,
        seen.epoch if stage.make is None else None,
        config.epochs if stage.make is None else None,
        metric,
        best,
        "?" if lacking else decision.action,
        f"depends on the output of {' and '.join(sorted(set(stage.needs.values())))}" if lacking else decision.why,
        _log(server, found.run_id) if found is not None else None,
    )


def _state(found: Found | None) -> str:
    if found is None:
        return "missing"
    if found.state != "finished":
        return found.state
    if found.damage is not None:
        return "damaged"
    return "out of date" if found.changes else "done"


def _given(server: TrackingClient, stage: Stage, run_id: str, outputs: dict[str, Output]) -> Row:
    state, why = "given", f"given: run {run_id}"
    try:
        outputs[stage.name] = handed_on(server, stage, run_id)
    except MltrainError as error:
        state, why = "damaged", str(error)
    return Row(stage.name, state, run_id, None, None, None, None, "skip" if state == "given" else "run", why, None)


def _log(server: TrackingClient, run_id: str) -> str | None:
    file = known_home(server, run_id) / LOG_FILE
    return str(file) if file.is_file() else None


def shown(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of a printed table."""
    cells = []
    for row in rows:
        epochs = f"{row.epoch or 0}/{row.epochs}" if row.epochs is not None else ""
        best = f"{row.best_metric} {row.best:.4g}" if row.best is not None else ""
        cells.append([row.stage, row.state, epochs, best, row.run_id or "", row.next, row.why])
    return cells
