"""Begins a training in its open run."""

import logging
from dataclasses import dataclass

from mltrain.commands.ending import describe
from mltrain.commands.preparation import Preparation, Prepared
from mltrain.commands.ranks import Alone
from mltrain.commands.result import Display
from mltrain.commands.train_request import Request
from mltrain.errors import RunNotFound
from mltrain.manager import CheckpointManager
from mltrain.ownership.attempts import recorded_config
from mltrain.provenance import fingerprint
from mltrain.run.tracked import TrackedRun
from mltrain.tracking.pages import location
from mltrain.tracking.tags import RESUMED_FROM_TAG, REWOUND_PREFIX

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """Begins a training in its run.

    Attributes:
        request: the request to train.
        run: the open run.
        manager: saves the run's checkpoints.
        preparation: prepared the training, and watches what it writes among its data.
        ranks: the processes of the training.
    """

    request: Request
    run: TrackedRun
    manager: CheckpointManager
    preparation: Preparation
    ranks: Alone

    def announce(self, prepared: Prepared, display: Display) -> None:
        """Record the configuration, then announce the run's id as resumable."""
        run, config, project = self.run, prepared.config, self.preparation.project.name

        def record() -> None:
            if self.request.resume_run is None or self._unrecorded(prepared):
                run.record_start(config.resolved(), config.recorded(), project)

        try:
            record()
        except KeyboardInterrupt:
            record()  # a request to stop interrupts only once; recorded, the run can be resumed
            raise
        finally:
            run.when_known(lambda: display.opened(run, location(run.server, run.identity.experiment_id, run.id)))

    def record(self, prepared: Prepared) -> None:
        """Record this attempt's origin, and attach the trainer."""
        run, manager, origin, trainer = self.run, self.manager, prepared.origin, prepared.trainer
        attempt = run.attempt
        attempt.changed = dict(prepared.changed) if origin.own is not None else {}
        attempt.resumed_from = origin.manifest.name if origin.manifest is not None else None
        attempt.versions, attempt.code = fingerprint.versions(), dict(prepared.code)
        attempt.data = dict(prepared.data)
        if origin.own is not None:
            manager.continue_from(origin.own, origin.damaged)
            run.set_tag(RESUMED_FROM_TAG, origin.own.name)
        run.record.attempt()
        self.preparation.origins.hold(origin, run, manager)
        trainer.attach(run, self.ranks.saver(manager, trainer), self.preparation.origins.source(origin))
        if self.request.resume_run is not None:
            self._continue(prepared)
        run.record.data(prepared.config.data_places(), prepared.config.sample_data())
        self.preparation.record_writes(run)
        describe(run, self.preparation.project.name, trainer, None)

    def save_origin(self, prepared: Prepared) -> None:
        """Save imported state, so that resumes need no file."""
        origin, trainer = prepared.origin, prepared.trainer
        if origin.file is None or origin.own is not None:
            return
        if origin.manifest is None or origin.parts is None:
            trainer.save("imported")
            return
        manifest = origin.manifest
        self.manager.save(  # as read: the trainer's random number generators have moved on
            origin.parts,
            step=manifest.step,
            epoch=manifest.epoch,
            metrics=manifest.metrics,
            kind="step" if manifest.kind == "interrupted" else manifest.kind,
            extra=trainer.described(),
            data=dict(prepared.data),
        )

    def _unrecorded(self, prepared: Prepared) -> bool:
        """Whether the run lacks a recorded configuration.

        It was killed too early, or imported without a project.
        """
        if self.request.config is None and (prepared.origin.own is None or prepared.origin.params is not None):
            return False
        try:
            return not recorded_config(self.run.artifacts).get("project")
        except RunNotFound:
            return True

    def _continue(self, prepared: Prepared) -> None:
        """Continue the run's curves; unless exact, tag the first step."""
        run, origin, step = self.run, prepared.origin, prepared.trainer.progress.step
        named = origin.manifest is not None and self.request.resume_from not in ("latest", "interrupted")
        rolled_back = named or origin.superseded
        matters = prepared.changes_that_matter if origin.own is not None else {}
        if not rolled_back and not matters:
            run.continue_exactly_after(step)
            self.ranks.show(prepared.trainer)
            return
        log.warning(
            "From step %d on, new values are recorded beside those that the run may already have (%s): MLflow deletes "
            "no points. For a separate curve use --fork-run %s.",
            step,
            f"changed: {', '.join(matters)}" if matters else f"rolled back to {origin}",
            run.id,
        )
        run.set_tag(f"{REWOUND_PREFIX}{run.attempt.ordinal}", str(step))
