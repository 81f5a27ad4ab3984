"""Which run this process writes to: known from the start, or created while the training goes on."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mltrain.delivery.creation import RunCreation
from mltrain.ownership.run_folder import home_of, record_address, remember_home
from mltrain.store.artifacts import Artifacts, DeferredArtifacts
from mltrain.store.names import STAGING
from mltrain.store.opening import open_artifacts
from mltrain.tracking.client import TrackingClient


class RunIdentity:
    """Id, name and place of a run.

    Args:
        server: where the run is.
        run: MLflow's description of the run, or how it is created.
        home: the run's folder on this host. If ``None``, the one that its id leads to.

    Attributes:
        id: of the run; until it is created, its provisional id.
        name: of the run.
        experiment_id: of its experiment; empty until it is created.
        artifacts: of the run; deferred until it is created.
        home: the run's folder on this host.
    """

    def __init__(self, server: TrackingClient, run: Any, home: Path | None) -> None:
        self._server = server
        self._creation = run if isinstance(run, RunCreation) else None
        self._created = threading.Event()
        self._naming = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self.artifacts: Artifacts
        if self._creation is not None:
            self.id, self.name, self.experiment_id = self._creation.spec.id, self._creation.spec.name, ""
            self.artifacts = DeferredArtifacts()
        else:
            self.id, self.name, self.experiment_id = run.run_id, run.run_name, run.experiment_id
            self.artifacts = open_artifacts(run.artifact_uri, server.uri)
            self._created.set()
        self.home = home or home_of(server, self.id)
        record_address(server, self.home)

    @property
    def known(self) -> bool:
        """Whether the run exists in the tracking store, as far as this process knows."""
        return self._created.is_set()

    @property
    def staging(self) -> Path:
        """Where checkpoints are staged: beside the artifacts where these are on this machine."""
        local = self.artifacts.local_root
        return local.parent / STAGING if local is not None else self.home / "staging"

    def when_known(self, listener: Callable[[], None]) -> None:
        """Call the listener as soon as the run exists: now, or from a thread in the background."""
        with self._naming:
            if not self.known:
                self._listeners.append(listener)
                return
        listener()

    def created(self) -> str:
        """Return the run's id, and create the run first if it does not exist. For the sender's thread.

        Raises:
            RunNotFound, StorageError, TrackingError: It cannot be created now.
        """
        if not self.known and self._creation is not None:
            info = self._creation.info()
            self._creation.discard_doubles()
            artifacts = open_artifacts(info.artifact_uri, self._server.uri)
            remember_home(info.run_id, self.home)
            replace(self._creation.spec, run_id=info.run_id).save(self.home)
            with self._naming:
                if isinstance(self.artifacts, DeferredArtifacts):
                    self.artifacts.target = artifacts
                self.id, self.experiment_id = info.run_id, info.experiment_id
                self._created.set()
                listeners, self._listeners = self._listeners, []
            for listener in listeners:
                listener()
        return self.id

    def discard_doubles(self) -> None:
        """Delete runs that a request whose response was lost has created as well."""
        if self._creation is not None:
            self._creation.discard_doubles()
