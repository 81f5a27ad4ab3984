"""Sends the backlog of this machine: points, files, and checkpoints that are complete in staging.

Creates runs that could not be created before. Points and checkpoints of attempt k beyond the step where attempt k+1 branched
off are not sent; they stay here and a warning is logged.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import filelock

from mltrain.checkpoint.manifest import CheckpointId, now
from mltrain.checkpoint.publishing import PartsMissing, publish
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import Context
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.delivery.creation import RunCreation, RunSpec, recorded_spec
from mltrain.delivery.journal import Journal
from mltrain.delivery.sender import Sender
from mltrain.errors import MltrainError, RunNotFound
from mltrain.ownership.attempts import STATUS_OF, Attempt, conclude, forget_only_local, last_attempt, recorded_attempts
from mltrain.ownership.host_lock import lock_file
from mltrain.ownership.run_folder import address_of, may_be, remember_home, stores
from mltrain.redaction import redacted_uri
from mltrain.store.artifacts import Artifacts, DeferredArtifacts
from mltrain.store.removal import discard_staged
from mltrain.tracking.best import best_tags
from mltrain.tracking.client import RUN_ID, TrackingClient, tags_of
from mltrain.tracking.places import COMMITTED, artifacts_of
from mltrain.tracking.tags import (
    ENDED_PREFIX,
    LATEST_TAG,
    ONLY_LOCAL_TAG,
    STATUS_TAG,
    WHEN_SENT_TAG,
    meaning_of_best,
)


@dataclass(frozen=True)
class Uploaded:
    """What became of staged checkpoints.

    Attributes:
        uploaded: names of those that are committed.
        dropped: how many a later attempt had overtaken.
        waiting: what the newest lacks whose other files are on other machines.
    """

    uploaded: tuple[str, ...] = ()
    dropped: int = 0
    waiting: str = ""


def has_backlog(home: Path) -> bool:
    """Whether anything complete is staged in a run's home."""
    staging = home / "staging"
    return staging.is_dir() and bool(Spool(staging).complete())


def publish_backlog(run_id: str, home: Path, artifacts: Artifacts, ends: Mapping[int, int]) -> Uploaded:
    """Upload what is staged and newer than the newest commit.

    Args:
        run_id: of the run.
        home: of the run on this host.
        artifacts: of the run.
        ends: for every attempt that a later one overtook, the step up to which it counts.

    Raises:
        StorageError: the artifact store refuses.
    """
    if not has_backlog(home):
        return Uploaded()
    spool = Spool(home / "staging")
    store = CheckpointStore(run_id, DeferredArtifacts(artifacts), spool, formerly=home.name)
    newest = max((manifest.id.order for manifest in store.manifests()), default=(0, 0))
    uploaded, dropped, waiting = [], 0, ""
    for manifest in store.staged():
        if manifest.step > ends.get(manifest.id.attempt, manifest.step):
            dropped += 1
            discard_staged(spool.root / manifest.name)
        elif manifest.id.order > newest:
            try:
                publish(store, manifest)
            except PartsMissing as error:
                waiting = str(error)
            else:
                uploaded.append(manifest.name)
                waiting = ""
    return Uploaded(tuple(uploaded), dropped, waiting)


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Synced:
    """What became of what one run had left behind here.

    Attributes:
        run_id: of the run; of one that has not been created, what it goes by.
        sent: how many records were sent.
        uploaded: names of checkpoints.
        dropped: how many points, pictures and checkpoints a later attempt had overtaken.
        left: how many records still wait.
        refused: how many records the server refuses for good.
        said: why nothing was sent, or what is wrong with the run's folder on this host.
        failed: whether something could not be sent that should have been.
        address: where it waits for, if that is not the server in use.
    """

    run_id: str
    sent: int = 0
    uploaded: tuple[str, ...] = ()
    dropped: int = 0
    left: int = 0
    refused: int = 0
    said: str = ""
    failed: bool = False
    address: str = ""


@dataclass(frozen=True)
class Existing:
    """A run that exists, as the destination of a sender."""

    id: str
    artifacts: Artifacts

    def created(self) -> str:
        """Return the run's id."""
        return self.id


class HostLock:
    """The lock on this host as the fence of a sender: it is held for as long as the sender runs."""

    gone: str | None = None

    def keep(self) -> bool:
        """Return whether this process holds the run."""
        return True


def sync(server: TrackingClient, *, seconds: float = 600.0, address: str | None = None) -> Iterator[Synced]:
    """Send what every run has left behind on this machine.

    A run that waits for another address of its store is sent to this server where the server has it. One that the server
    does not have, or that was never created, is listed with its address.

    Args:
        server: gets it.
        seconds: how long one run may take.
        address: another address of this server's store, whose runs are sent here, those that were never created as well.
    """
    also = redacted_uri(address_of(address)) if address is not None else None
    for root, there in stores(server):
        ours = there is None or there == also or (address is not None and root.name == address)
        for home in sorted(folder for folder in root.iterdir() if RUN_ID.fullmatch(folder.name)):
            yield from _of_home(server, home, seconds, None if ours else there)


def _of_home(server: TrackingClient, home: Path, seconds: float, address: str | None) -> Iterator[Synced]:
    """Send what is in one home; nothing that is wrong with it keeps others from being sent."""
    try:
        if not home.is_dir():
            return
        with lock_file(home / "lock").acquire(timeout=0):
            for file in sorted(home.glob("journal*.sqlite")) or [home / "journal.sqlite"]:
                synced = _synced(server, home, file, seconds, address)
                if address is None or synced != Synced(synced.run_id):  # nothing waits there: no concern of this store
                    yield synced
    except filelock.Timeout:
        yield Synced(home.name, said="it is being trained and sends by itself")
    except RunNotFound as error:
        yield Synced(home.name, said=str(error))
    except (MltrainError, OSError) as error:
        yield Synced(home.name, said=str(error), failed=True)
    except Exception as error:
        log.exception("What waits in %s could not be sent", home)
        yield Synced(home.name, said=f"{type(error).__name__}: {error}", failed=True)


def _synced(server: TrackingClient, home: Path, file: Path, seconds: float, address: str | None) -> Synced:
    journal = Journal(file, 10**6)
    try:
        harm = f"its journal was damaged, and is kept as {journal.damaged}" if journal.damaged is not None else ""
        spec = recorded_spec(home)
        journal.unpark()
        run_id = home.name if spec is None or spec.run_id is None else spec.run_id
        before = journal.unsent()
        if not before and not has_backlog(home):
            return Synced(run_id, said=harm, failed=bool(harm))
        uncreated = spec is not None and spec.run_id is None
        if address is not None and (uncreated or not _is_at(server, run_id, address)):
            # The newest checkpoint stays staged after its upload, so here nobody knows whether it still waits.
            said = f"waits for {address}" if before or uncreated else f"has a staged checkpoint that {address} may lack"
            return Synced(run_id, left=before, said=said, address=address)
        if uncreated and spec is not None:
            run_id = _created(server, spec, home)
        run = server.run(run_id)
        artifacts = artifacts_of(server, run, signs=COMMITTED)
        attempts = [a for a in recorded_attempts(artifacts, last_attempt(run.data.params)) if not a.withdrawn]
        attempt = attempts[-1].ordinal if attempts else 0
        ends = _ends(attempts)
        dropped = journal.drop_beyond(ends)
        # The records first: they name the run's configuration, without which its checkpoints are of no use.
        before = journal.unsent()
        drained = Sender(server, Existing(run_id, artifacts), journal, HostLock()).drain(seconds)
        left = publish_backlog(run_id, home, artifacts, ends)
        if left.uploaded:
            _announce(server, run_id, artifacts)
        if drained:
            _settle(server, run_id, artifacts, attempt)
        waiting, refused = journal.unsent(), journal.parked()
        sent = before - waiting - refused
        said = "; ".join(filter(None, (harm, left.waiting)))
        return Synced(
            run_id, sent, left.uploaded, dropped + left.dropped, waiting, refused, said=said, failed=bool(harm)
        )
    finally:
        journal.close()


def _is_at(server: TrackingClient, run_id: str, address: str) -> bool:
    """Whether a run that waits for another address is found at this server: then both are one store, as ids are unique."""
    if not may_be(server, address):
        return False
    try:
        server.run(run_id)
    except RunNotFound:
        return False
    return True


def _announce(server: TrackingClient, run_id: str, artifacts: Artifacts) -> None:
    """Record which checkpoints are the newest and the best, as the commit that could not upload them would have."""
    metric, mode = meaning_of_best(server.run(run_id))
    reader = CheckpointReader(CheckpointStore(run_id, artifacts), Context(now(), {}, metric, mode))
    for found in reader.matching("latest")[:1]:
        server.set_tag(run_id, LATEST_TAG, found.name)
    for found in reader.matching("best")[:1]:
        server.set_tags(run_id, best_tags(found))


def _settle(server: TrackingClient, run_id: str, artifacts: Artifacts, attempt: int) -> None:
    """Set the status that the run's tags tell; FINISHED only when its newest checkpoint is in the store."""
    run = server.run(run_id)
    tags, last = (
        tags_of(run),
        last_attempt(run.data.params),
    )  # one that was withdrawn may be later than the last that trained
    said = tags.get(STATUS_TAG, "")
    newest = CheckpointId.parse(tags.get(ONLY_LOCAL_TAG, "").partition(" ")[0])
    newest = newest if newest is not None and newest.attempt == attempt else None
    if newest is not None and CheckpointStore(run_id, artifacts).manifest(newest) is not None:
        if said in STATUS_OF and WHEN_SENT_TAG in tags:
            said = tags[WHEN_SENT_TAG]
            server.set_tag(run_id, f"{ENDED_PREFIX}{last}", said)
        forget_only_local(server, run_id, tags)
    if said in STATUS_OF:
        conclude(server, run_id, last, said)


def _created(server: TrackingClient, spec: RunSpec, home: Path) -> str:
    creation = RunCreation(server, spec, tried=True)
    run_id = str(creation.info().run_id)
    creation.discard_doubles()
    remember_home(run_id, home)
    replace(spec, run_id=run_id).save(home)
    return run_id


def _ends(attempts: list[Attempt]) -> dict[int, int]:
    """Return, for every attempt that a later one overtook, the step up to which it counts."""
    ends: dict[int, int] = {}
    for earlier, later in itertools.pairwise(attempts):
        name = later.resumed_from
        branch = CheckpointId.parse(name) if name else None
        same = branch is not None and branch.attempt == earlier.ordinal
        ends[earlier.ordinal] = branch.step if branch is not None and same else 0
    return ends
