"""Inspects the runs of stages, and verifies their outputs."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mltrain.checkpoint.reader import CheckpointReader, matching
from mltrain.config import Config
from mltrain.errors import DamagedCheckpoint, MltrainError, RunNotFound
from mltrain.pipeline import Stage
from mltrain.pipelines.decisions import Found, Recipe, Record, StageMode, changes, decide, preferred
from mltrain.pipelines.pipeline_run import children
from mltrain.project import source_of
from mltrain.provenance import fingerprint
from mltrain.provenance.written import units_of
from mltrain.run import stage_outputs as outputs
from mltrain.run.checkpoints import open_checkpoints, trained_config
from mltrain.run.listing import state
from mltrain.run.stage_outputs import Output
from mltrain.store.artifacts import Artifacts
from mltrain.store.opening import UnusableArtifacts
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.run_artifacts import artifacts_of
from mltrain.tracking.tags import STAGE_RECIPE_TAG, WRITTEN_TAG, declared_best

log = logging.getLogger(__name__)


def recipe_of(stage: Stage, config: Config, inputs: Mapping[str, Output]) -> Recipe:
    """Return the recipe of a stage for the current request."""
    function = stage.build or stage.make
    assert function is not None
    code = fingerprint.imported_code(source_of(function))
    own = {key: place for key, place in config.data_places().items() if key not in stage.needs}
    return Recipe(config, {key: output.digest for key, output in inputs.items()}, fingerprint.data(own), code)


def recipe_tags(recipe: Recipe) -> dict[str, str]:
    """Return the tags that record a recipe's code and data."""
    return {STAGE_RECIPE_TAG: json.dumps({"code": recipe.code, "data": recipe.data})}


@dataclass(frozen=True)
class Survey:
    """The state of a stage.

    Attributes:
        found: the run to keep or continue, or else the newest. ``None`` before the stage's first run.
        output: its output, if intact.
        epoch: epochs trained.
        best: name and value of its best metric.
    """

    found: Found | None
    output: Output | None = None
    epoch: int | None = None
    best: tuple[str, float] | None = None


def survey(server: TrackingClient, parent: Any, stage: Stage, recipe: Recipe, mode: StageMode) -> Survey:
    """Inspect a stage's runs; verify the outputs to be used.

    Args:
        server: the tracking server.
        parent: the pipeline's run.
        stage: the stage.
        recipe: the recipe of the request; inputs missing in it are not compared.
        mode: decides which outputs would be used.
    """
    seen: dict[str, Survey] = {}
    for run in children(server, parent, stage.name):
        try:
            one = _surveyed(server, run, stage, recipe, mode)
        except UnusableArtifacts as error:
            log.warning("Run %s of the stage %r is skipped: %s", run.info.run_id, stage.name, error)
            continue
        assert one.found is not None
        seen[one.found.run_id] = one
    chosen = preferred(stage, [one.found for one in seen.values() if one.found is not None], mode)
    return seen[chosen.run_id] if chosen is not None else Survey(None)


def _surveyed(server: TrackingClient, run: Any, stage: Stage, recipe: Recipe, mode: StageMode) -> Survey:
    artifacts = artifacts_of(server, run)
    checkpoints = open_checkpoints(run.info.run_id, server)
    record = _record(run, checkpoints, recipe)
    changed = changes(record, recipe)
    epoch = int(run.data.metrics["epoch"]) if "epoch" in run.data.metrics else None
    found = Found(run.info.run_id, state(server, run), changed, _where(stage, epoch, record))
    output = None
    if found.state == "finished" and decide(stage, found, mode).action == "skip":
        output, wrong, recoverable = verified(stage, run.info.run_id, artifacts, checkpoints)
        found = replace(found, damage=wrong, recoverable=recoverable)
    return Survey(found, output, epoch, _best(run, checkpoints))


def verified(
    stage: Stage, run_id: str, artifacts: Artifacts, checkpoints: CheckpointReader
) -> tuple[Output | None, str | None, bool]:
    """Return the output if intact, any damage, and its recoverability."""
    if stage.make is not None:
        try:
            output = outputs.made(run_id, artifacts)
            wrong = outputs.damage(artifacts, output)
        except MltrainError as error:
            wrong = str(error)
        return (output, None, True) if wrong is None else (None, wrong, True)
    manifests, context = checkpoints.all(), checkpoints.notes.context
    latest = matching(manifests, "latest", context)
    line = matching(manifests, stage.hands_on, context) or latest
    if not line:
        return None, "it has no checkpoint", False
    output = outputs.trained(line[0])
    wrong = outputs.damage(artifacts, output)
    if wrong is None:
        return output, None, True
    # The newest checkpoint can be trained again from an earlier one. A best one in the middle cannot without abandoning the
    # checkpoints after it.
    newest = latest[0].id == line[0].id
    return None, wrong, newest and any(not checkpoints.store.problems(manifest) for manifest in latest[1:])


def handed_on(server: TrackingClient, stage: Stage, run_id: str) -> Output:
    """Return the verified output of a run given by ``--use``.

    Raises:
        DamagedCheckpoint: the run has no intact output.
        RunNotFound: the run does not exist.
    """
    run = server.run(run_id)
    artifacts = artifacts_of(server, run)
    output, wrong, _ = verified(stage, run_id, artifacts, open_checkpoints(run_id, server))
    if output is None:
        raise DamagedCheckpoint(f"Run {run_id} cannot be used for the stage {stage.name!r}: {wrong}.")
    return output


def _record(run: Any, checkpoints: CheckpointReader, recipe: Recipe) -> Record:
    """Return the recorded recipe of a run.

    The configuration comes from the newest checkpoint, since a resume may have changed it, or else from the start. A run
    killed before it recorded a configuration accepts any. Inputs, data and code are recorded when the run begins.
    """
    try:
        config = trained_config(checkpoints)
    except RunNotFound:
        config = recipe.config.resolved()
    digests = {key: one["digest"] for key, one in outputs.inputs_of(run).items()}
    try:
        recorded = json.loads(run.data.tags[STAGE_RECIPE_TAG])
        return Record(config, digests, _data_now(run, dict(recorded["data"]), recipe), str(recorded["code"]))
    except (KeyError, ValueError, TypeError):
        return Record(config, digests, {}, "")


def _data_now(run: Any, before: dict[str, str], recipe: Recipe) -> dict[str, str]:
    """Return a run's data digests by the current rule.

    Files that the run wrote do not count.
    """
    places, written = recipe.config.places(), units_of(run.data.tags.get(WRITTEN_TAG, ""))
    same = {
        name: recipe.data[name]
        for name, digest in before.items()
        if name in recipe.data
        and fingerprint.same_data(digest, recipe.data[name], places[name], written.get(name, {}), may_fill=False)
    }
    return before | same


def _where(stage: Stage, epoch: int | None, record: Record) -> str:
    if stage.make is not None:
        return ""
    total = record.config.get("epochs")
    return f"epoch {epoch or 0}" + (f" of {total}" if total is not None else "")


def _best(run: Any, checkpoints: CheckpointReader) -> tuple[str, float] | None:
    declared = declared_best(run.data.tags)
    metric = declared[0] if declared is not None else None
    first: Sequence[Any] = checkpoints.matching("best") if metric is not None else ()
    return (metric, first[0].metrics[metric]) if metric is not None and first and metric in first[0].metrics else None
