"""Finds the run of a training, and opens it."""

import logging
from dataclasses import dataclass
from typing import Any

from mltrain.commands.train_request import Request
from mltrain.config import Config
from mltrain.ownership.launcher import Launcher
from mltrain.run import adoption, opening
from mltrain.run.key import confirm
from mltrain.run.naming import experiment_for, run_name
from mltrain.run.preparation import creation_seconds
from mltrain.run.tracked import TrackedRun
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import FORKED_FROM_TAG, IMPORTED_TAG, MLFLOW_PARENT

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WantedRun:
    """The run of a training: resumed, adopted or new.

    Attributes:
        request: the request to train.
        server: the tracking server.
        launcher: the ``mlflow run`` that started this process, if any.
    """

    request: Request
    server: TrackingClient
    launcher: Launcher | None

    def known(self, experiment: str | None) -> Any | None:
        """Return MLflow's record of the run to resume, if any.

        Args:
            experiment: the configured one; a warning is logged if the launcher chose another.

        Raises:
            RunNotFound, RunHeld, TrackingError, UsageError: the run cannot be used.
        """
        if self.request.resume_run is not None:
            return opening.resumable(self.server, self.request.resume_run, take_over=self.request.take_over)
        if self.launcher is not None:
            found = adoption.adoptable(self.server, self.launcher)
            chosen = self.server.get_experiment(found.info.experiment_id).name
            if experiment is not None and experiment != chosen:
                log.warning(
                    "experiment=%s is not used: the run that MLFLOW_RUN_ID names is in the experiment %s.",
                    experiment,
                    chosen,
                )
        return None

    def open(self, project: str, config: Config) -> TrackedRun:
        """Resume, adopt or create the run.

        Args:
            project: name of the project.
            config: its configuration.

        Raises:
            RunHeld, TrackingError, StorageError: the run cannot be opened.
        """
        request = self.request
        if request.resume_run is not None:
            if request.run_key is not None:
                confirm(self.server, request.resume_run, request.run_key)
            return opening.resume(self.server, request.resume_run, take_over=request.take_over, launcher=self.launcher)
        tags = dict(request.tags)
        if request.parent is not None:
            tags[MLFLOW_PARENT] = request.parent
        if request.fork_run is not None:
            tags |= {MLFLOW_PARENT: request.fork_run, FORKED_FROM_TAG: request.fork_run}
        if request.resume_file is not None:
            tags[IMPORTED_TAG] = request.resume_file.name
        forked = request.fork_run is not None and "run_name" not in request.overrides
        name = None if forked else config.run_name  # a fork does not take its source's name
        generated = run_name(project, request.preset, request.overrides, order=tuple(config.recorded()))
        if self.launcher is not None:
            return adoption.adopt(self.server, self.launcher, name, project, tags, fallback=generated)
        return opening.create(
            self.server,
            experiment_for(project, config.experiment),
            name or generated,
            project,
            tags,
            may_defer=not request.require_tracking and request.run_key is None,
            seconds=creation_seconds(self.server),
        )
