"""The checkpoint that a training continues from, and its address."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mltrain.checkpoint.folder import FolderArtifacts
from mltrain.checkpoint.manifest import UNTRACKED, CheckpointId, Manifest, now
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import Context
from mltrain.checkpoint.settings import DEFAULT_METRIC
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import DamagedCheckpoint, UsageError
from mltrain.run.checkpoints import store_with_staged
from mltrain.run.naming import full_id
from mltrain.store.folders import expanded
from mltrain.tracking.client import active_run_id, connect
from mltrain.tracking.tags import meaning_of_best

SCHEME = "mltrain:"


@dataclass(frozen=True)
class Address:
    """The address of a checkpoint: ``mltrain:RUN_ID``, ``mltrain:RUN_ID@best``, ``mltrain:./folder@step:120``.

    Attributes:
        location: id of a run, or path of a folder. A path contains a slash, an id does not.
        which: name of the checkpoint; see :meth:`mltrain.CheckpointManager.load`.
    """

    location: str
    which: str = "latest"

    @classmethod
    def parse(cls, text: Any) -> "Address | None":
        """Parse an address; return ``None`` for any other value.

        Raises:
            UsageError: the text begins with ``mltrain:`` and names neither a run nor a folder; or the home of ``~`` is
                unknown.
        """
        if not isinstance(text, str) or not text.startswith(SCHEME):
            return None
        location = text.removeprefix(SCHEME)
        which = ""
        if "@" in location and not (
            "/" in location and expanded(location).is_dir()
        ):  # a folder's name may contain an @
            location, _, which = location.rpartition("@")
        if not location:
            raise UsageError(
                f"{text!r} names no run. Expected {SCHEME}RUN_ID or {SCHEME}RUN_ID@best. Try: mltrain runs"
            )
        return cls(location, which or "latest")

    @property
    def is_folder(self) -> bool:
        """Whether the address names a folder, which no run tracks."""
        return "/" in self.location


@dataclass(frozen=True)
class Origin:
    """A verified checkpoint that a training continues from.

    Finding or reading one neither claims nor changes its run.

    Attributes:
        address: address of the checkpoint, with the run's full id.
        manifest: the checkpoint's manifest.
        state: part names to tensors (on the CPU) and plain values. Empty if :meth:`find` returned this origin.
        known: ids of all checkpoints that the run had at that time.
        damaged: ids of the damaged checkpoints that were skipped, each with its error.
    """

    address: Address
    manifest: Manifest
    state: Mapping[str, Any]
    known: frozenset[CheckpointId]
    damaged: Mapping[CheckpointId, DamagedCheckpoint] = field(default_factory=dict)

    @classmethod
    def read(cls, address: Address) -> "Origin":
        """Read and verify a checkpoint onto the CPU.

        If the ``latest`` or ``best`` checkpoint is damaged, the previous intact one is read.

        Raises:
            NoCheckpoint: no checkpoint matches, or all that match are damaged.
            RunNotFound: the run does not exist.
            TrackingError: the tracking server does not answer.
            StorageError: the artifact store cannot be read.
        """
        damaged: dict[CheckpointId, DamagedCheckpoint] = {}
        reader = _reader(address, damaged)
        location = address.location if address.is_folder else reader.store.run_id
        known = frozenset(manifest.id for manifest in reader.all())
        manifest, state = reader.load(address.which)
        return cls(Address(location, address.which), manifest, state, known, damaged)

    @classmethod
    def find(cls, address: Address, step: int | None = None, name: str | None = None) -> "Origin | None":
        """Find the checkpoint that a training continues, without its state.

        Args:
            address: the run's address.
            step: optimizer steps that the training has done. If ``None``, the newest checkpoint is returned.
            name: the checkpoint that the engine has loaded. If ``None`` or removed since, the newest checkpoint up to ``step`` is
                returned.

        Returns:
            The checkpoint. ``None`` if the run has no checkpoint yet.

        Raises:
            UsageError: all checkpoints of the run are later than ``step``.
            RunNotFound: the run does not exist.
            TrackingError: the tracking server does not answer.
        """
        damaged: dict[CheckpointId, DamagedCheckpoint] = {}
        reader = _reader(address, damaged)
        line, everything = reader.matching("latest"), reader.all()
        if not line:
            return None
        upto = (one for one in line if step is None or 0 < one.step <= step)
        chosen = next((one for one in everything if one.name == name), None) or next(upto, None)
        if chosen is None:
            raise UsageError(
                f"Run {reader.store.run_id} has checkpoints up to step {line[0].step}, and this training begins at step {step}. "
                "Expected a training that continues them. Try: restore the run's checkpoint first; or pass no run, for a new one."
            )
        which = "latest" if chosen.id == line[0].id else chosen.name
        known = frozenset(manifest.id for manifest in everything)
        return cls(Address(reader.store.run_id, which), chosen, {}, known, damaged)

    @property
    def rolls_back(self) -> bool:
        """Whether continuing here abandons later checkpoints of the run."""
        return self.address.which not in ("latest", "interrupted")


def _reader(address: Address, damaged: dict[CheckpointId, DamagedCheckpoint]) -> CheckpointReader:
    """Return a reader of a folder or run. That of a run includes staged checkpoints."""
    if address.is_folder:
        folder = expanded(address.location).absolute()
        store = CheckpointStore(UNTRACKED, FolderArtifacts(folder), folder=folder)
        return CheckpointReader(store, Context(now(), {}, DEFAULT_METRIC, "min"), damaged.__setitem__)
    server = connect()
    run = server.run(full_id(server, address.location))
    context = Context(now(), {}, *meaning_of_best(run))
    return CheckpointReader(store_with_staged(server, run), context, damaged.__setitem__)


def refuse_checkpoints(save_dir: str | Path | None) -> None:
    """Refuse a new training where an earlier one saved checkpoints.

    Args:
        save_dir: folder of the new training. If ``None``, the active MLflow run is checked.

    Raises:
        UsageError: the folder or the active run has checkpoints.
    """
    location = str(save_dir) if save_dir is not None else active_run_id()
    if location is None or (save_dir is not None and not expanded(save_dir).is_dir()):
        return
    address = location if save_dir is None or "/" in location else f"{location}/"
    newest = _reader(Address(address), {}).newest()
    if newest is not None:
        raise UsageError(
            f"{'The active MLflow run' if save_dir is None else 'The folder'} {location} has checkpoints up to {newest.title}, "
            "and this training begins without them. Expected a run or folder without checkpoints. "
            f"Try: continue from {SCHEME}{address}"
        )
