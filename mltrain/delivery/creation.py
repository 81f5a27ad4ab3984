"""Creates a run exactly once, although responses may be lost.

MLflow chooses the id of a run. Until then the training uses a provisional id, the idempotency key of the creation: it is a
tag of the new run, which this process and ``mltrain sync`` search for before they create the run again.
"""

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mltrain.checkpoint.worker import logged
from mltrain.errors import RunNotFound
from mltrain.ownership.run_folder import created_from, home_of, record_address, remember_home
from mltrain.redaction import redacted
from mltrain.store.artifacts import Artifacts, DeferredArtifacts
from mltrain.store.durable import replace_file
from mltrain.store.names import STAGING
from mltrain.store.opening import open_artifacts
from mltrain.tracking.client import RUN_ID, TrackingClient
from mltrain.tracking.connection import Refusal
from mltrain.tracking.run_artifacts import refuse_unusable_location
from mltrain.tracking.tags import REQUEST_ID_TAG

log = logging.getLogger(__name__)

SPEC_FILE = "birth.json"


@dataclass(frozen=True)
class RunSpec:
    """A run to be created, as recorded in :data:`SPEC_FILE`.

    Attributes:
        experiment: name of its experiment. If ``None``, MLflow's default.
        name: of the run.
        tags: initial tags.
        id: provisional id, and the idempotency key of the creation.
        began: start time in milliseconds since 1970.
        run_id: MLflow's id. ``None`` until the run is created.
    """

    experiment: str | None
    name: str
    tags: Mapping[str, str]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    run_id: str | None = None

    def save(self, home: Path) -> None:
        """Record the run on the disk for ``mltrain sync``.

        Raises:
            StorageError: the disk refuses.
        """
        replace_file(home / SPEC_FILE, json.dumps(asdict(self), indent=1).encode())


def recorded_spec(home: Path) -> RunSpec | None:
    """Return the record of a run that began offline.

    Returns ``None`` if the run was created on the server at once. A damaged record is replaced by the run's id, if known, or
    by a new name to create the run with.
    """
    file = home / SPEC_FILE
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        spec = RunSpec(**{name: raw[name] for name in RunSpec.__dataclass_fields__ if name in raw})
        texts = (spec.name, spec.id, spec.experiment or "", *spec.tags, *spec.tags.values())
        if not all(isinstance(text, str) for text in texts) or not isinstance(spec.began, int):
            raise ValueError("a field has the wrong type")
        if not RUN_ID.fullmatch(spec.id) or not RUN_ID.fullmatch(spec.run_id or spec.id):
            raise ValueError("it has no valid id")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        run_id = created_from(home)
        log.warning(
            "The record %s is damaged (%s). %s",
            file,
            error,
            f"The run was created as {run_id}." if run_id else "The run's experiment and name are lost.",
        )
        return RunSpec(None, f"recovered-{home.name[:8]}", {}, id=home.name, run_id=run_id)
    return spec


class RunCreation:
    """Creates a run at most once, whatever the retries.

    Args:
        server: tracking server that gets the run.
        spec: the run.
        tried: whether an earlier try may have created the run already.
    """

    def __init__(self, server: TrackingClient, spec: RunSpec, *, tried: bool = False) -> None:
        self.spec = spec
        self._server = server
        self._unsure = tried
        self._experiment: str | None = None
        self._info: Any = None
        self._lock = threading.Lock()

    def info(self) -> Any:
        """Return MLflow's description of the run; create the run first if necessary.

        Raises:
            RunNotFound: its experiment is deleted.
            StorageError: its experiment has no usable place for artifacts.
            TrackingError: the server does not answer, or refuses.
        """
        with self._lock:  # a call that hangs must end before the next one searches for its run
            if self._info is None:
                self._experiment = self._experiment or experiment_id(self._server, self.spec.experiment)
                if not self._unsure:  # otherwise the run may exist, and its artifact location no longer matters
                    experiment = self._server.once.get_experiment(self._experiment)
                    refuse_unusable_location(self._server, experiment)
                found = self._found() if self._unsure else []
                self._info = found[0].info if found else self._created()
            return self._info

    def recorded(self, home: Path) -> Any:
        """Return :meth:`info`; record the run's id on this disk.

        Args:
            home: the folder on this host of the run's provisional id.
        """
        info = self.info()
        self.delete_duplicates()
        remember_home(info.run_id, home)
        replace(self.spec, run_id=info.run_id).save(home)
        return info

    def delete_duplicates(self) -> int:
        """Delete runs that requests with lost responses created too; return their number."""
        if self._info is None or not self._unsure:
            return 0
        duplicates = [run for run in self._found() if run.info.run_id != self._info.run_id]
        for run in duplicates:
            self._server.once.delete_run(run.info.run_id)
        return len(duplicates)

    def _created(self) -> Any:
        spec = self.spec
        tags = {key: redacted(value) for key, value in spec.tags.items()} | {REQUEST_ID_TAG: spec.id}
        try:
            assert self._experiment is not None
            return self._server.create_run(self._experiment, spec.began, tags, redacted(spec.name)).info
        except Refusal as error:
            self._unsure = self._unsure or not error.permanent
            raise

    def _found(self) -> list[Any]:
        query = f"tags.`{REQUEST_ID_TAG}` = '{self.spec.id}'"
        runs = self._server.once.search_runs([str(self._experiment)], query, page=100)
        return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def experiment_id(server: TrackingClient, name: str | None) -> str:
    """Return an experiment's id; create the experiment if necessary.

    Raises:
        RunNotFound: the experiment is deleted.
        TrackingError: the server does not answer, or refuses.
    """
    name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name:
        return _default_id()
    found = server.once.find_experiment(name)
    if found is None:
        try:
            return str(server.create_experiment(name))
        except Refusal:  # another process, or a request of this one whose response was lost, created it first
            found = server.once.find_experiment(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise RunNotFound(f"The experiment {name!r} is deleted. Try: restore it in the MLflow UI, or another name")
    return str(found.experiment_id)


def existing_experiment(server: TrackingClient, name: str | None) -> str | None:
    """Return the id of an experiment. ``None`` if it does not exist.

    Raises:
        TrackingError: the server does not answer, or refuses.
    """
    name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name:
        return _default_id()
    found = server.find_experiment(name)
    return str(found.experiment_id) if found is not None else None


def _default_id() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"


class RunIdentity:
    """Id, name, artifacts and folder of a run.

    Args:
        server: tracking server that has the run.
        run: MLflow's description of the run, or its creation.

    Attributes:
        id: of the run; until it is created, its provisional id.
        name: of the run.
        experiment_id: of its experiment; empty until the run is created.
        artifacts: of the run; deferred until it is created.
        home: the run's folder on this host.
    """

    def __init__(self, server: TrackingClient, run: Any) -> None:
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
        self.home = home_of(server, self.id)
        record_address(server.uri, self.home)

    @property
    def known(self) -> bool:
        """Whether this process knows that the run is created."""
        return self._created.is_set()

    @property
    def staging(self) -> Path:
        """Where checkpoints are staged: beside the artifacts if these are on this machine."""
        local = self.artifacts.local_root
        return local.parent / STAGING if local is not None else self.home / "staging"

    def when_known(self, listener: Callable[[], None]) -> None:
        """Call the listener once the run exists: now or later.

        A later call is in the sender's thread, which logs its error.
        """
        with self._naming:
            if not self.known:
                self._listeners.append(listener)
                return
        listener()

    def created(self) -> str:
        """Return the run's id; create the run first if necessary. For the sender's thread.

        Raises:
            RunNotFound, StorageError, TrackingError: the run cannot be created now.
        """
        if not self.known and self._creation is not None:
            info = self._creation.recorded(self.home)
            artifacts = open_artifacts(info.artifact_uri, self._server.uri)
            with self._naming:
                if isinstance(self.artifacts, DeferredArtifacts):
                    self.artifacts.target = artifacts
                self.id, self.experiment_id = info.run_id, info.experiment_id
                self._created.set()
                listeners, self._listeners = self._listeners, []
            for listener in listeners:
                logged(listener)
        return self.id

    def delete_duplicates(self) -> None:
        """Delete runs that requests with lost responses created too."""
        if self._creation is not None:
            self._creation.delete_duplicates()
