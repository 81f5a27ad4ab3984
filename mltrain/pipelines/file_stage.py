"""Runs a stage that makes files."""

import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from mltrain import device as devices
from mltrain.commands.result import NOT_KEPT, Display, Outcome
from mltrain.config import Config
from mltrain.errors import DataError, MltrainError, counted
from mltrain.metrics import floats
from mltrain.ownership.run_folder import grace_seconds
from mltrain.pipeline import Stage
from mltrain.project import source_of
from mltrain.provenance import fingerprint
from mltrain.provenance.written import Watch
from mltrain.rng import seed_everything
from mltrain.run import opening
from mltrain.run import stage_outputs as outputs
from mltrain.run.tracked import TrackedRun
from mltrain.signals import StopRequest
from mltrain.store.opening import open_artifacts
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.pages import location
from mltrain.tracking.tags import WRITTEN_TAG


@dataclass(frozen=True, kw_only=True)
class Making:
    """Request to make the files of a stage.

    Attributes:
        stage: the stage.
        config: its configuration.
        project: name of the project that the run records.
        tags: tags of a new run.
        resume_run: the run to continue, which makes uncommitted files again. If ``None``, a new run.
        take_over: whether to take the run over without waiting for its holder's lease to expire.
    """

    stage: Stage
    config: Config
    project: str
    tags: Mapping[str, str] = field(default_factory=dict)
    resume_run: str | None = None
    take_over: bool = False


def make(making: Making, server: TrackingClient, display: Display, stop: StopRequest) -> Outcome:
    """Make and commit the files, and close the run.

    Raises:
        MltrainError: the files could not be made; the run, if already open, is closed as FAILED.
    """
    config = making.config
    if making.resume_run is not None:
        run = opening.resume(server, making.resume_run, take_over=making.take_over, launcher=None)
    else:
        run = opening.create(server, config.experiment, config.run_name, making.project, making.tags)
    try:
        run.record_start(config.resolved(), config.recorded(), making.project)
        display.opened(run, location(server, run.identity.experiment_id, run.id))
        if making.resume_run is not None:
            run.continue_exactly_after(-1)
            _discard_unfinished(server, run)
        return _made(making, run, display, stop)
    except KeyboardInterrupt:
        run.close("KILLED", f"stopped by {stop.reason}", grace_seconds())
        return Outcome(run.id, stop.exit_code, "stopped before its files were made")
    except BaseException as error:
        run.close("FAILED", f"{type(error).__name__}: {error}"[:500], grace_seconds())
        if not isinstance(error, MltrainError):
            error.add_note(f"Run {run.id} of the stage {making.stage.name!r} is FAILED.")
        raise


def _made(making: Making, run: TrackedRun, display: Display, stop: StopRequest) -> Outcome:
    config, stage = making.config, making.stage
    assert stage.make is not None
    places_given = config.data_places()
    run.attempt.versions, run.attempt.code = fingerprint.versions(), fingerprint.code(source_of(stage.make))
    found = fingerprint.contents_by_name(places_given)
    run.attempt.data = {name: fingerprint.digest_of(contents) for name, contents in found.items()}
    run.record.attempt()
    run.record.data(places_given, config.sample_data())
    devices.set_up(config)
    seed_everything(config.seed)
    display.waiting("making files")
    with tempfile.TemporaryDirectory(prefix="mltrain-") as folder, closing(Watch(places_given)) as watch:
        watch.began({name: contents for name, contents in found.items() if contents is not None})
        watch.report_to(lambda text: run.set_tag(WRITTEN_TAG, text))
        metrics = floats(stage.make(config, Path(folder)), f"The stage {stage.name!r}")
        output = outputs.commit(run.id, run.artifacts, f"a{run.ordinal:02d}", Path(folder))
    if not output.files:
        raise DataError(f"The stage {stage.name!r} made no files. Expected at least one as its output.")
    run.log_metrics(metrics, 1)
    why = f"{counted(len(output.files), 'file')} made"
    delivered = run.close("FINISHED", why, grace_seconds())
    run.require_hold()
    code = NOT_KEPT if run.ending.lost else 0
    outcome = Outcome(run.id, code, why, None, None, metrics, delivered, run.known, run.trouble, lost=run.ending.lost)
    display.ended(outcome)
    return outcome


def _discard_unfinished(server: TrackingClient, run: TrackedRun) -> None:
    """Remove unfinished uploads, as only the lease holder may."""
    artifacts = open_artifacts(server.run(run.id).info.artifact_uri, server.uri)
    for name in outputs.unfinished(artifacts):
        artifacts.remove_output(name)
