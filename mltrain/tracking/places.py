"""Where a run is: its artifacts, what is wrong when they are not where the run says, and its page in MLflow."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mltrain.redaction import redacted_uri
from mltrain.store.artifacts import Artifacts, refuse_unwritable
from mltrain.store.opening import UnusableArtifacts, open_artifacts
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import LATEST_TAG, PROJECT_TAG, RETENTION_TAG

COMMITTED = (LATEST_TAG,)
"""The tag that a run has only after a checkpoint was committed."""
_RECORDED = (PROJECT_TAG, RETENTION_TAG, *COMMITTED)
"""Tags that a run has only after something was put among its artifacts, where these are on this machine."""


def artifacts_of(server: TrackingClient, run: Any, *, signs: Sequence[str] = _RECORDED) -> Artifacts:
    """Return the artifacts of a run, which have to be where the run says if anything was ever put there.

    Args:
        server: has the run.
        run: MLflow's description of it.
        signs: tags by which the run tells that something was put there.

    Raises:
        UnusableArtifacts: they were moved, are not mounted, or cannot be reached from here.
        StorageError: the artifact store does not answer.
    """
    artifacts = open_artifacts(run.info.artifact_uri, server.uri)
    if artifacts.local_root is None:
        signs = COMMITTED  # elsewhere tags may arrive before files
    if any(sign in run.data.tags for sign in signs) and not artifacts.entries():
        raise UnusableArtifacts(_missing(f"run {run.info.run_id}", run.info.artifact_uri, artifacts, server))
    return artifacts


def refuse_unusable_place(server: TrackingClient, experiment: Any) -> None:
    """Refuse an experiment in which a new run could not keep its artifacts.

    Raises:
        UnusableArtifacts: its place cannot be reached from here, or was there once and is gone.
        StorageError: its place cannot be written to.
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
    """Say which folder is missing, and how the artifacts are found again."""
    place = artifacts.local_root
    if place is None:
        return (
            f"The artifacts of {whose} are not at {redacted_uri(uri)}: nothing is there, although the run has committed a "
            "checkpoint. Expected what it committed. Try: give the server the storage that it had before "
            "(mlflow server --artifacts-destination PLACE)."
        )
    place = place.absolute()
    lost = next((above for above in (*reversed(place.parents), place) if not above.exists()), None)
    what = f"the folder {lost} does not exist" if lost is not None else f"the folder {place} is empty"
    remedy = "mount that folder, or move it back"
    moved = _moved(place, server.uri) if lost is not None else None
    if moved is not None:
        new, old, above = (shlex.quote(str(one)) for one in (moved[1], moved[0], moved[0].parent))
        remedy = f"mkdir -p {above} && ln -s {new} {old}"
    elif lost is not None:
        remedy += f"; where it has another name now: ln -s NEW_FOLDER {shlex.quote(str(lost))}"
    return (
        f"The artifacts of {whose} are not at {place}: {what}. Expected the folder that {redacted_uri(server.uri)} records. "
        f"Try: {remedy}."
    )


def _moved(place: Path, tracking_uri: str) -> tuple[Path, Path] | None:
    """Return which folder has another name now, and which, where the artifacts went along with the database."""
    database = Path(tracking_uri.removeprefix("sqlite:///")).absolute().parent
    for base in (database, Path.cwd()):
        for length in range(2, len(place.parts)):
            new = base.joinpath(*place.parts[-length:])
            if new.is_dir() and new != place:
                return Path(*place.parts[: 1 - length]), base / place.parts[-length]
    return None


def page_of(address: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page. MLflow remembers the mode that it names; without it the GenAI pages come first."""
    return f"{address.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def page_of_experiment(address: str, experiment_id: str | None) -> str:
    """Return the address of the list of an experiment's runs, or of the list of experiments."""
    place = f"/{experiment_id}" if experiment_id is not None else ""
    return f"{address.rstrip('/')}/#/experiments{place}?workflowType=machine_learning"


def location(server: TrackingClient, experiment_id: str, run_id: str) -> str:
    """Return for people where runs are kept; of a server in a second line also the address of this one's page."""
    if server.uri.startswith(("http://", "https://")):
        return f"Runs are kept at {server.shown}\nLook at {page_of(server.shown, experiment_id, run_id)}"
    return f"Runs are kept in {server.shown}, seen from {Path.cwd()}."
