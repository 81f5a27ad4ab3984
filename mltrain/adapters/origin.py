"""Where a training continues from: the address of a checkpoint, and the checkpoint, read and verified."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mltrain.checkpoint.folder import FolderArtifacts, FolderSpool
from mltrain.checkpoint.manifest import UNTRACKED, CheckpointId, Manifest, now
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import Context
from mltrain.checkpoint.settings import DEFAULT_METRIC
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import DamagedCheckpoint, UsageError
from mltrain.ownership.run_folder import known_home
from mltrain.run.naming import full_id
from mltrain.tracking.client import active_run_id, connect
from mltrain.tracking.run_artifacts import artifacts_of
from mltrain.tracking.tags import meaning_of_best

SCHEME = "mltrain:"


@dataclass(frozen=True)
class Address:
    """The address of a checkpoint: ``mltrain:RUN_ID``, ``mltrain:RUN_ID@best``, ``mltrain:./folder@step:120``.

    Attributes:
        place: id of a run, or a folder (with a slash).
        which: the checkpoint; see :meth:`mltrain.CheckpointManager.load`.
    """

    place: str
    which: str = "latest"

    @classmethod
    def parse(cls, text: Any) -> "Address | None":
        """Return the address that a text spells, or ``None`` if the text is not an address of mltrain.

        Raises:
            UsageError: it begins like one and names no run and no folder.
        """
        if not isinstance(text, str) or not text.startswith(SCHEME):
            return None
        place = text.removeprefix(SCHEME)
        which = ""
        if "@" in place and not ("/" in place and Path(place).is_dir()):  # the name of a folder may have one
            place, _, which = place.rpartition("@")
        if not place:
            raise UsageError(
                f"{text!r} names no run. Expected {SCHEME}RUN_ID or {SCHEME}RUN_ID@best. Try: mltrain runs"
            )
        return cls(place, which or "latest")

    @property
    def is_folder(self) -> bool:
        """Whether the checkpoint lies in a folder, without any tracking."""
        return "/" in self.place


@dataclass(frozen=True)
class Origin:
    """A checkpoint that was read and verified; nothing was claimed or changed for it.

    Attributes:
        address: of the checkpoint, with the run's id in full.
        manifest: of the checkpoint.
        state: what it holds.
        known: all checkpoints that its run had when it was read.
        damaged: those that were passed over, with what is wrong with them.
    """

    address: Address
    manifest: Manifest
    state: Mapping[str, Any]
    known: frozenset[CheckpointId]
    damaged: Mapping[CheckpointId, DamagedCheckpoint] = field(default_factory=dict)

    @classmethod
    def read(cls, address: Address) -> "Origin":
        """Read a checkpoint onto the CPU, verified; of a damaged ``latest`` or ``best``, the intact one before it.

        Raises:
            NoCheckpoint: the run has no match, or no intact one.
            RunNotFound, TrackingError: the run cannot be reached.
        """
        damaged: dict[CheckpointId, DamagedCheckpoint] = {}
        reader = _reader(address, damaged)
        place = address.place if address.is_folder else reader.store.run_id
        known = frozenset(manifest.id for manifest in reader.all())
        manifest, state = reader.load(address.which)
        return cls(Address(place, address.which), manifest, state, known, damaged)

    @classmethod
    def reached(cls, address: Address, step: int | None = None, name: str | None = None) -> "Origin | None":
        """Return the checkpoint that a training at some step continues, without its state.

        Args:
            address: of the run.
            step: optimizer steps that the training has done. If ``None``, the newest checkpoint is meant.
            name: of the checkpoint that was loaded. If ``None``, or no longer there, the newest one up to ``step`` is meant.

        Returns:
            It; ``None`` if the run has no checkpoint.

        Raises:
            UsageError: the run has checkpoints, and the training begins before them.
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
                "Expected one that continues it. Try: restore the run's checkpoint first, or name no run for a new one."
            )
        which = "latest" if chosen.id == line[0].id else chosen.name
        known = frozenset(manifest.id for manifest in everything)
        return cls(Address(reader.store.run_id, which), chosen, {}, known, damaged)

    @property
    def rolls_back(self) -> bool:
        """Whether the checkpoint was named, so that later ones may be abandoned for it."""
        return self.address.which not in ("latest", "interrupted")


def _reader(address: Address, damaged: dict[CheckpointId, DamagedCheckpoint]) -> CheckpointReader:
    """Open the checkpoints of an address for reading, those included that wait on this host for the store."""
    if address.is_folder:
        folder = Path(address.place).absolute()
        store = CheckpointStore(UNTRACKED, FolderArtifacts(folder), FolderSpool(folder), folder=folder)
        return CheckpointReader(store, Context(now(), {}, DEFAULT_METRIC, "min"), damaged.__setitem__)
    server = connect()
    run = server.run(full_id(server, address.place))
    artifacts, staging = artifacts_of(server, run), known_home(server, run.info.run_id) / "staging"
    spool = Spool(staging) if artifacts.local_root is None and staging.is_dir() else None
    store = CheckpointStore(run.info.run_id, artifacts, spool)
    return CheckpointReader(store, Context(now(), {}, *meaning_of_best(run)), damaged.__setitem__)


def refuse_checkpoints(save_dir: str | Path | None) -> None:
    """Refuse to begin where an earlier training has left checkpoints: nobody has loaded them.

    Raises:
        UsageError: the folder, or the active MLflow run where there is none, has checkpoints.
    """
    place = str(save_dir) if save_dir is not None else active_run_id()
    if place is None or (save_dir is not None and not Path(save_dir).is_dir()):
        return
    shown = place if save_dir is None or "/" in place else f"./{place}"
    newest = next(iter(_reader(Address(shown), {}).matching("latest")), None)
    if newest is not None:
        raise UsageError(
            f"{'The active MLflow run' if save_dir is None else 'The folder'} {place} has checkpoints up to {newest.title}, and "
            f"this training begins without them. Try: continue from {SCHEME}{shown}; or another run or folder."
        )
