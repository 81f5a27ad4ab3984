"""Where the state of a training comes from: the start, a checkpoint of its own run, or one of another run."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mltrain.checkpoint.manager import CheckpointManager
from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import DataError, UsageError
from mltrain.request import Request
from mltrain.tracking.artifacts import open_artifacts
from mltrain.tracking.run import PIN_TAG, TrackedRun, pins_of
from mltrain.tracking.server import Server

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """What a training begins from.

    Attributes:
        manifest: of the checkpoint; none: the start.
        parts: its verified contents.
        run_id: of the run that it belongs to, where that is another one.
        params: the configuration beside it, where it is of the run itself and has one.
    """

    manifest: Manifest | None = None
    parts: Mapping[str, Any] | None = None
    run_id: str | None = None
    params: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        if self.manifest is None:
            return "the start"
        return f"{self.manifest.title} ({self.manifest.name})" + (f" of run {self.run_id}" if self.run_id else "")

    @property
    def own(self) -> Manifest | None:
        """The checkpoint, if it is of the run itself."""
        return self.manifest if self.run_id is None else None

    def check(self, code: Mapping[str, Any], data: Mapping[str, str], *, allow_change: bool) -> None:
        """Say what is different from when the checkpoint was written.

        Args:
            code: fingerprint of the project's code now.
            data: fingerprints of the data now, by the configuration's key.
            allow_change: go on with other data.

        Raises:
            DataError: the data are others, and that is not allowed.
        """
        if self.manifest is None:
            return
        before = self.manifest.code
        if before.get("digest") and before.get("digest") != code.get("digest"):
            log.warning(
                "The project's code is not that of the checkpoint (commit %s then, %s now); this is recorded.",
                before.get("commit", "unknown")[:12],
                code.get("commit", "unknown")[:12],
            )
        changed = [
            f"{name}: {digest} then, {data[name]} now"
            for name, digest in self.manifest.data.items()
            if data.get(name, digest) != digest
        ]
        if changed and not allow_change:
            raise DataError(
                "The data are not those that the checkpoint was trained on ("
                + "; ".join(changed)
                + "). Give the places of the same data as key=value, or resume with --allow-change."
            )


class Origins:
    """Chooses what a run begins from, and keeps a checkpoint of another run in being until this one has its own.

    Args:
        server: has the runs.
        run: that begins.
    """

    def __init__(self, server: Server, run: TrackedRun) -> None:
        self._server = server
        self._run = run
        self._pin: tuple[str, str] | None = None

    def choose(self, request: Request, manager: CheckpointManager) -> Origin:
        """Choose and verify what the state comes from; for a resume without any commit that is the start.

        Args:
            request: says what is asked for.
            manager: of the run's checkpoints.

        Raises:
            UsageError, NoCheckpoint, DamagedCheckpoint: what is asked for is not there, or cannot be used.
        """
        if request.fork_run is not None:
            return self._branched(manager, request.fork_run, request.resume_from)
        if request.resume_run is None:
            return Origin()
        loaded = manager.load_configured(request.resume_from)
        if loaded is not None:
            return Origin(manager.resumed_from, loaded[0], params=loaded[1])
        if request.resume_from != "latest":
            raise UsageError(
                f"Run {self._run.id} has no checkpoint {request.resume_from!r}. Resume without --resume-from."
            )
        branch = self._branch_point()
        if branch is not None:
            log.warning("Nothing was committed before, so training starts again at the branch point.")
            return self._branched(manager, *branch)
        log.warning("Nothing was committed before, so training starts at step 0 in the same run.")
        return Origin()

    def release(self) -> None:
        """Let the other run's policy decide on the checkpoint that this run began from: it has one of its own."""
        if self._pin is not None:
            self._server.call(self._server.client.delete_tag, *self._pin)
            self._pin = None

    def _branched(self, manager: CheckpointManager, source: str, which: str) -> Origin:
        store = CheckpointStore(source, open_artifacts(self._server.run(source).info.artifact_uri, self._server.uri))
        manifest, parts = CheckpointReader(store, manager.context()).load(which)
        self._pin = (source, f"{PIN_TAG}{manifest.name}")
        self._server.call(self._server.client.set_tag, *self._pin, self._reason)
        self._run.set_tag("mltrain.forked_from", f"{source}/{manifest.name}")
        return Origin(manifest, parts, source)

    def _branch_point(self) -> tuple[str, str] | None:
        """Return from which run and checkpoint a fork began that has no commit of its own, as the pin there tells."""
        source = self._server.run(self._run.id).data.tags.get("mltrain.forked_from", "").partition("/")[0]
        if not source:
            return None
        pins = pins_of(self._server.run(source))
        return next(((source, name) for name, reason in pins.items() if reason == self._reason), None)

    @property
    def _reason(self) -> str:
        return f"branch point of run {self._run.id}"
