"""Opens the artifacts of a run; an error explains missing ones."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mltrain.redaction import redacted_uri
from mltrain.store.artifacts import Artifacts
from mltrain.store.folders import refuse_unwritable
from mltrain.store.opening import UnusableArtifacts, open_artifacts
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import LATEST_TAG, PROJECT_TAG, RETENTION_TAG

COMMITTED = (LATEST_TAG,)
"""The tag that a run gets with its first committed checkpoint."""
_RECORDED = (PROJECT_TAG, RETENTION_TAG, *COMMITTED)
"""Tags that a run gets after its first artifact, if the artifacts are on this machine."""


def artifacts_of(server: TrackingClient, run: Any, *, signs: Sequence[str] = _RECORDED) -> Artifacts:
    """Return a run's artifacts.

    If the run has ever written artifacts, they must still be at its artifact URI.

    Args:
        server: has the run.
        run: an MLflow ``Run``.
        signs: tags that prove that the run has written artifacts.

    Raises:
        UnusableArtifacts: they were moved, are not mounted, or cannot be reached from this machine.
        StorageError: the artifact store does not answer.
    """
    artifacts = open_artifacts(run.info.artifact_uri, server.uri)
    if artifacts.local_root is None:
        signs = COMMITTED  # in a remote store, tags may arrive before files
    if any(sign in run.data.tags for sign in signs) and not artifacts.entries():
        raise UnusableArtifacts(_missing(f"run {run.info.run_id}", run.info.artifact_uri, artifacts, server))
    return artifacts


def refuse_unusable_location(server: TrackingClient, experiment: Any) -> None:
    """Raise an error for an experiment without usable artifact storage.

    Raises:
        UnusableArtifacts: its artifact location cannot be reached from this machine, or has vanished.
        StorageError: its artifact location cannot be written to.
    """
    place = experiment.artifact_location
    if not place:
        return
    root = open_artifacts(place, server.uri)
    if root.local_root is None:
        return
    if not os.path.lexists(root.local_root):
        query = f"tags.`{_RECORDED[0]}` != ''"
        if any(server.once.search_runs([experiment.experiment_id], query, page=1)):
            raise UnusableArtifacts(_missing(f"the experiment {experiment.name!r}", place, root, server))
    refuse_unwritable(root.local_root, "Choose another experiment: --experiment NAME.")


def _missing(whose: str, uri: str, artifacts: Artifacts, server: TrackingClient) -> str:
    """Return the error message for missing artifacts."""
    place = artifacts.local_root
    if place is None:
        return (
            f"The artifacts of {whose} are not at {redacted_uri(uri)}: it is empty. Expected the checkpoint that the run has "
            "committed. Try: start the server with its earlier storage (mlflow server --artifacts-destination PLACE)."
        )
    place = place.absolute()
    lost = next((above for above in (*reversed(place.parents), place) if not above.exists()), None)
    what = f"the folder {lost} does not exist" if lost is not None else f"the folder {place} is empty"
    remedy = "mount that folder, or move it back"
    moved = _moved(place, server.uri) if lost is not None else None
    if moved is not None and lost is not None:
        old, new = moved
        if lost.is_relative_to(old):  # another program has made a folder above it again, where a link cannot be
            old, new = lost, new / lost.relative_to(old)
        remedy = "mkdir -p {} && ln -s {} {}".format(*(shlex.quote(str(one)) for one in (old.parent, new, old)))
    elif lost is not None:
        remedy += f"; if it has another name now: ln -s NEW_FOLDER {shlex.quote(str(lost))}"
    return (
        f"The artifacts of {whose} are not at {place}: {what}. Expected the folder that {redacted_uri(server.uri)} records. "
        f"Try: {remedy}."
    )


def _moved(place: Path, tracking_uri: str) -> tuple[Path, Path] | None:
    """Return the recorded and the new path of moved artifacts.

    They are found if they moved together with the database.
    """
    database = Path(tracking_uri.removeprefix("sqlite:///")).absolute().parent
    for base in (database, Path.cwd()):
        for length in range(2, len(place.parts)):
            new = base.joinpath(*place.parts[-length:])
            if new.is_dir() and new != place:
                return Path(*place.parts[: 1 - length]), base / place.parts[-length]
    return None
