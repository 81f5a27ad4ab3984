"""Chooses the origin of a training's state."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mltrain.checkpoint import checkpoint_file
from mltrain.checkpoint.manifest import CheckpointId, Manifest, now
from mltrain.checkpoint.reader import CheckpointReader, Configured
from mltrain.checkpoint.retention import Context, Mode
from mltrain.checkpoint.store import CheckpointStore
from mltrain.commands.foreign_file import Foreign, finite
from mltrain.commands.train_request import Request
from mltrain.errors import DamagedCheckpoint, DataError, NoCheckpoint, UsageError
from mltrain.manager import CheckpointManager
from mltrain.provenance import fingerprint
from mltrain.provenance.written import Units
from mltrain.run.checkpoints import checkpoints_of, store_with_staged
from mltrain.run.tracked import TrackedRun
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.run_artifacts import artifacts_of
from mltrain.tracking.tags import FORKED_FROM_TAG, LATEST_TAG, PIN_PREFIX, pins_of
from mltrain.trainer.ports import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """What a training begins from.

    Attributes:
        manifest: the checkpoint's manifest. If ``None``, training begins at the start.
        parts: the checkpoint's verified contents.
        run_id: the run of the checkpoint. If ``None``, the training's own run.
        params: the configuration saved with the checkpoint, if any.
        passed_over: checkpoints that come before it in the order of choice.
        damaged: the damaged ones among them.
        file: the file it was read from. If ``None``, it was read from a run.
        foreign: the contents of a file of another program, if any.
        superseded: whether its run has later checkpoints.
    """

    manifest: Manifest | None = None
    parts: Mapping[str, Any] | None = None
    run_id: str | None = None
    params: Mapping[str, Any] | None = None
    passed_over: frozenset[CheckpointId] = frozenset()
    damaged: Mapping[CheckpointId, DamagedCheckpoint] = field(default_factory=dict)
    file: Path | None = None
    foreign: Foreign | None = None
    superseded: bool = False

    def __str__(self) -> str:
        if self.manifest is None:
            return "the start" if self.file is None else str(self.file)
        return f"{self.manifest.title} ({self.manifest.name})" + (f" of run {self.run_id}" if self.run_id else "")

    @property
    def own(self) -> Manifest | None:
        """The checkpoint, if it belongs to the training's own run."""
        return self.manifest if self.run_id is None else None

    def check(
        self,
        code: Mapping[str, Any],
        data: Mapping[str, str],
        places: Mapping[str, Path],
        written: Mapping[str, Units],
        *,
        allow_change: bool,
    ) -> None:
        """Compare code and data with those of the checkpoint.

        Args:
            code: fingerprint of the project's code now.
            data: fingerprints of the data now, by the configuration's key.
            places: paths of the data, by the same keys.
            written: what earlier attempts wrote there, which does not count as data.
            allow_change: whether the data may have changed.

        Raises:
            DataError: the data changed, and that is not allowed.
        """
        if self.manifest is None:
            return
        before = self.manifest.code
        if before.get("digest") and not fingerprint.same_code(before["digest"], code.get("digest", "")):
            log.warning(
                "The project's code has changed since the checkpoint (commit %s then, %s now). The change is recorded.",
                before.get("commit", "unknown")[:12],
                code.get("commit", "unknown")[:12],
            )
        changed = [
            f"{name}: {digest} then, {data[name]} now"
            for name, digest in self.manifest.data.items()
            if name in data
            and not fingerprint.same_data(digest, data[name], places[name], written.get(name, {}), may_fill=True)
        ]
        if changed and not allow_change:
            raise DataError(
                "The data have changed since the checkpoint ("
                + "; ".join(changed)
                + "). Give the paths of the same data as key=value, or resume with --allow-change. If the training itself "
                "writes there, name the field in output_fields of the configuration's class."
            )


class Origins:
    """Chooses the origin of a training, and pins foreign checkpoints.

    Args:
        server: the tracking server.
        request: the request to train.
        read: reads and verifies a checkpoint on all processes of the training.
    """

    def __init__(
        self, server: TrackingClient, request: Request, read: Callable[[CheckpointStore, Manifest], Configured]
    ) -> None:
        self._server, self._read = server, read
        self._request = request
        self._pin: tuple[str, str] | None = None

    def choose(self, run: Any | None, metric: str, mode: Mode) -> Origin:
        """Choose and verify the origin, without changing anything.

        A resumed run without a commit begins at the start.

        Args:
            run: MLflow's record of the run to resume. If ``None``, the run is new.
            metric: the metric that decides which checkpoint is best.
            mode: ``min`` or ``max``.

        Raises:
            UsageError, NoCheckpoint, DamagedCheckpoint: the requested checkpoint does not exist, or cannot be used.
        """
        request = self._request
        context = Context(now(), {}, metric, mode)
        if request.resume_file is not None:
            return self._of_file(request.resume_file, run, context)
        if request.fork_run is not None:
            return self._branched(request.fork_run, request.resume_from, context)
        if run is None:
            if request.resume_from != "latest":
                raise UsageError(
                    f"--resume-from {request.resume_from} names a checkpoint without a run. Expected --resume-run or --fork-run "
                    f"with it. Try: mltrain train --resume-run ID --resume-from {request.resume_from}"
                )
            return Origin()
        own = self._own(run, context)
        if own is not None:
            return own
        if request.resume_from != "latest":
            raise UsageError(
                f"Run {run.info.run_id} has no checkpoint {request.resume_from!r}. Try: without --resume-from"
            )
        branch = self._branch_point(run)
        if branch is not None:
            log.warning("The run has no checkpoint yet, so training starts again at the branch point.")
            return self._branched(*branch, context)
        log.warning("The run has no checkpoint yet, so training starts at step 0 in the same run.")
        return Origin()

    def is_current(self, origin: Origin, manager: CheckpointManager) -> bool:
        """Whether the origin would still be chosen now."""
        if self._request.resume_run is None or self._request.resume_file is not None:
            return True
        choices = (manifest.id for manifest in manager.reader.choices(self._request.resume_from))
        if origin.own is None:
            return next(choices, None) is None
        first = next((identity for identity in choices if identity not in origin.passed_over), None)
        return first == origin.own.id

    def hold(self, origin: Origin, run: TrackedRun, manager: CheckpointManager) -> None:
        """Pin the other run's checkpoint until this run has one."""
        if origin.manifest is None or origin.run_id is None or origin.file is not None:
            return
        self._pin = (origin.run_id, f"{PIN_PREFIX}{origin.manifest.name}")
        self._server.once.set_tag(*self._pin, _reason(run.id))
        run.set_tag(FORKED_FROM_TAG, f"{origin.run_id}/{origin.manifest.name}")
        manager.when_committed(self._release)

    def source(self, origin: Origin) -> Source | None:
        """Return a function that loads the pinned checkpoint again."""
        manifest, run_id = origin.manifest, origin.run_id
        if manifest is None or run_id is None or origin.file is not None:
            return None  # a new run saves at once the state that it takes from a file
        store = CheckpointStore(run_id, artifacts_of(self._server, self._server.run(run_id)))
        return lambda: store.load(manifest)

    def _release(self, *_: object) -> None:
        """Unpin the other run's checkpoint."""
        if self._pin is not None:
            self._server.once.delete_tag(*self._pin)
            self._pin = None

    def _own(self, run: Any, context: Context) -> Origin | None:
        run_id, which = run.info.run_id, self._request.resume_from
        damaged: dict[CheckpointId, DamagedCheckpoint] = {}
        checkpoints = CheckpointReader(store_with_staged(self._server, run), context, damaged.__setitem__)
        candidates = checkpoints.matching(which)
        if not candidates and which not in ("latest", "best", "interrupted"):
            raise NoCheckpoint(checkpoints.no_match_message(which))
        announced = CheckpointId.parse(run.data.tags.get(LATEST_TAG, ""))
        wrong = [
            identity
            for identity, error in damaged.items()  # a truncated manifest that no tag announced was never committed
            if not error.torn or (announced is not None and identity.order <= announced.order)
        ]
        if not candidates and wrong and not checkpoints.all():
            raise NoCheckpoint(
                f"None of the checkpoints of run {run_id} is usable. Try: mltrain verify {run_id}, which lists the damage"
            )
        if not candidates:
            return None
        manifest, (parts, params) = checkpoints.load_configured(which, read=self._read)
        order = [candidate.id for candidate in candidates]
        before = order[: order.index(manifest.id)] if manifest.id in order else []
        return Origin(manifest, parts, params=params, passed_over=frozenset(before), damaged=damaged)

    def _of_file(self, file: Path, run: Any | None, context: Context) -> Origin:
        """Return the verified contents of a file."""
        written = checkpoint_file.origin_of(file)
        manifest = checkpoint_file.manifest_of(file) if written is not None and written.complete else None
        if written is None or manifest is None or written.run_id is None:
            return Origin(file=file, foreign=finite(file))
        parts, params = checkpoint_file.read(file), checkpoint_file.params_of(file)
        if run is None:
            return Origin(manifest, parts, written.run_id, params, file=file)
        newest = checkpoints_of(self._server, run).newest()
        announced = newest.id if newest is not None else CheckpointId.parse(run.data.tags.get(LATEST_TAG, ""))
        superseded = announced is not None and announced.order > manifest.id.order
        return Origin(manifest, parts, params=params, file=file, superseded=superseded)

    def _branched(self, source: str, which: str, context: Context) -> Origin:
        artifacts = artifacts_of(self._server, self._server.run(source))
        checkpoints = CheckpointReader(CheckpointStore(source, artifacts), context)
        try:
            manifest, (parts, params) = checkpoints.load_configured(which, read=self._read)
        except NoCheckpoint:  # a plain loop with a CheckpointManager saves no configuration
            manifest, parts = checkpoints.load(which)
            params = None
        return Origin(manifest, parts, source, params=params)

    def _branch_point(self, run: Any) -> tuple[str, str] | None:
        """Return a fork's source run and checkpoint, from the pin."""
        source = run.data.tags.get(FORKED_FROM_TAG, "").partition("/")[0]
        if not source:
            return None
        pins = pins_of(self._server.run(source))
        return next(((source, name) for name, reason in pins.items() if reason == _reason(run.info.run_id)), None)


def _reason(run_id: str) -> str:
    return f"branch point of run {run_id}"
