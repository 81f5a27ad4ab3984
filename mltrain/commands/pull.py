"""Pulls the verified best model of a run or experiment."""

import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from mltrain.checkpoint.codec import STATE_TREE, decode_weights
from mltrain.checkpoint.manifest import FILE_NAME, FileEntry, Manifest, now, whole_manifest
from mltrain.checkpoint.reader import CheckpointReader, first_usable
from mltrain.checkpoint.retention import Context, Mode
from mltrain.checkpoint.store import CheckpointStore
from mltrain.checkpoint.verified_files import Arrived
from mltrain.device import usable
from mltrain.errors import MltrainError, NoCheckpoint, RunNotFound, StorageError, UsageError, nearest
from mltrain.restoring.modules import without_lazy
from mltrain.run.checkpoints import open_checkpoints
from mltrain.store.artifacts import sha256_of
from mltrain.store.durable import make_folder, place_file, replacing, write_file
from mltrain.store.folders import expanded, refuse_unwritable
from mltrain.store.names import TEMPORARY
from mltrain.store.removal import discard_abandoned, mark_in_use
from mltrain.tracking import names
from mltrain.tracking.client import TrackingClient, connect
from mltrain.tracking.run_artifacts import artifacts_of
from mltrain.tracking.tags import meaning_of_best

log = logging.getLogger(__name__)

Received = Callable[[str, int, int], None]
"""Called with each piece received: its file, its bytes, and the bytes of all files wanted."""

_PULLED = ("model*.safetensors", "params.json", "history.csv", FILE_NAME)
_PENDING = f".{FILE_NAME}.????????.tmp"
"""Matches the manifest of a pull that is renaming its files. If the pull is killed, the next one recognises its files by it."""


@dataclass(frozen=True)
class Pulled:
    """A pulled model: its run, checkpoint and folder."""

    run_id: str
    manifest: Manifest
    folder: Path


@dataclass(frozen=True)
class Choice:
    """The run and the checkpoints to pull, preferred first."""

    run_id: str
    checkpoints: CheckpointReader
    candidates: Sequence[Manifest]


def pull(
    run_id: str | None = None,
    *,
    to: str | Path,
    experiment: str | None = None,
    metric: str | None = None,
    mode: Mode | None = None,
    checkpoint: str = "best",
    received: Received | None = None,
) -> Pulled:
    """Pull a checkpoint's verified weights, configuration, history and manifest.

    Args:
        run_id: the run's id. Give either this or ``experiment``.
        to: a folder; created if missing.
        experiment: name of an experiment, whose best run by ``metric`` and ``mode`` is pulled.
        metric: the metric that ranks the runs, by its name in the project or in MLflow. If ``None``, each run's own.
        mode: ``min`` or ``max``. If ``None``, each run's own.
        checkpoint: ``best``, ``latest``, ``epoch:N``, ``step:N`` or a name.
        received: called with each piece that arrives: its file's name, its bytes, and the bytes of all files. Pieces may arrive
            in several threads; from a store that supports only downloads to files they come after the download. An error that
            it raises ends the pull.

    Raises:
        NoCheckpoint: no checkpoint matches, or every match is damaged.
        StorageError: the folder cannot be written.
        UsageError: the folder has files of the same names that no pull wrote.
    """
    return download(choose(run_id, experiment, metric, mode, checkpoint), expanded(to), received)


def choose(
    run_id: str | None, experiment: str | None, metric: str | None, mode: Mode | None, checkpoint: str
) -> Choice:
    """Choose the run and the checkpoints for :func:`pull` to download.

    Raises:
        NoCheckpoint: no checkpoint matches.
    """
    run_id, checkpoints = _chosen(run_id, experiment, metric, mode)
    candidates = checkpoints.matching(checkpoint)
    if not candidates and checkpoint == "best":
        candidates = checkpoints.matching("latest")
        if candidates:
            log.warning("No checkpoint was measured or declared best; pulling the newest.")
    if not candidates:
        raise NoCheckpoint(checkpoints.no_match_message(checkpoint))
    return Choice(run_id, checkpoints, candidates)


def download(choice: Choice, to: Path, received: Received | None = None) -> Pulled:
    """Download what :func:`choose` chose into a folder, verified.

    Raises:
        NoCheckpoint: every candidate is damaged.
        StorageError: the folder cannot be written.
        UsageError: the folder has files of the same names that no pull wrote.
    """
    refuse_folder(to)
    left = _temporaries(to)
    for file in left:
        if not file.match(_PENDING):
            discard_abandoned(file)
    store, tell = choice.checkpoints.store, received or (lambda name, count, total: None)

    def write(manifest: Manifest) -> None:
        """Download the files one by one, then rename them."""
        sizes = store.sizes(manifest)
        wanted = [name for name in sizes if name.startswith(("model", "params", "history"))]
        total, whole = sum(sizes[name] for name in wanted), {}

        def arrived(name: str) -> Arrived:
            return lambda manifest, count: tell(name, count, total)

        own = to / f".{FILE_NAME}.{secrets.token_hex(4)}.tmp"
        make_folder(to)
        with ExitStack() as in_use:
            with ExitStack() as written:
                for name in wanted:
                    store.watch(arrived(name))
                    content = store.fetch(manifest, only=name.__eq__)[name]
                    written.enter_context(replacing(to / name))(content)
                    if manifest.shards:
                        whole[name] = FileEntry(size=len(content), sha256=sha256_of(content))
                write_file(own, [whole_manifest(manifest, whole).to_json()])
                pending = in_use.enter_context(own.open("r+b"))
                mark_in_use(pending)  # another pull into the folder leaves it alone
            if os.name != "posix":
                pending.close()  # Windows renames no open file
            place_file(own, to / FILE_NAME)

    manifest, _ = first_usable(store, choice.candidates, write)
    for file in left:  # the pending manifests as well, which only now are no longer needed to recognise files
        discard_abandoned(file)
    return Pulled(choice.run_id, manifest, to)


def _temporaries(to: Path) -> list[Path]:
    """Return a folder's files that are named like unfinished pulls."""
    found = (file for pattern in _PULLED for file in to.glob(f".{pattern}.????????.tmp"))
    return [file for file in found if TEMPORARY.fullmatch(file.name)]


def refuse_folder(to: Path) -> None:
    """Refuse a folder that a pull must not fill.

    Raises:
        StorageError: the folder cannot be written.
        UsageError: the folder has files of the same names that no pull wrote.
    """
    refuse_unwritable(to, "Choose another folder: --to FOLDER.")
    if _manifest_in(to / FILE_NAME) is not None:
        return
    pending = [manifest for file in to.glob(_PENDING) if (manifest := _manifest_in(file)) is not None]
    found = (file for pattern in _PULLED for file in to.glob(pattern))
    taken = sorted(file.name for file in found if not any(_describes(manifest, file) for manifest in pending))
    if taken:
        raise UsageError(
            f"{to} has files that a pull would replace, and no manifest of an earlier pull: {', '.join(taken)}. Expected a "
            "new folder, or one that a pull filled. Try: --to FOLDER"
        )


def _manifest_in(file: Path) -> Manifest | None:
    try:
        return Manifest.from_json(file.read_bytes())
    except (OSError, MltrainError):
        return None


def _describes(manifest: Manifest, file: Path) -> bool:
    """Whether a manifest has a file's name and digest."""
    if file.name not in manifest.files:
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == manifest.files[file.name].sha256


def load_best(
    run_id: str | None = None,
    *,
    experiment: str | None = None,
    metric: str | None = None,
    mode: Mode | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, torch.Tensor]:
    """Return the verified weights of the best checkpoint.

    It is the best of a run, or of the best run of an experiment.

    Returns:
        Names to tensors, for ``model.load_state_dict``; a tied weight appears under each of its names.

    Raises:
        NoCheckpoint: the run has no intact best checkpoint.
        UsageError: the device is not usable here.
    """
    target = usable(device)
    _, checkpoints = _chosen(run_id, experiment, metric, mode)
    store, candidates = checkpoints.store, checkpoints.matching("best")
    if not candidates:
        raise NoCheckpoint(checkpoints.no_match_message("best"))

    def read(manifest: Manifest) -> dict[str, bytearray]:
        return store.fetch(manifest, only=lambda name: name.startswith("model") or name == STATE_TREE)

    return without_lazy(decode_weights(first_usable(store, candidates, read)[1], target))


def _chosen(
    run_id: str | None, experiment: str | None, metric: str | None, mode: Mode | None
) -> tuple[str, CheckpointReader]:
    """Return the named or best run, with its checkpoints."""
    if (run_id is None) == (experiment is None):
        raise UsageError("Both or neither of run and experiment were given. Expected one of the two.")
    if run_id is not None and (metric is not None or mode is not None):
        raise UsageError(
            "A metric and a mode rank the runs of an experiment, and a run was named. Expected an experiment, or "
            f"the run alone. Try: mltrain pull --experiment NAME, or mltrain checkpoints {run_id} and --checkpoint NAME"
        )
    server = connect()
    if run_id is None:
        assert experiment is not None
        run_id = best_run(server, experiment, metric, mode)
    checkpoints = open_checkpoints(run_id, server)
    return checkpoints.store.run_id, checkpoints


def best_run(server: TrackingClient, experiment: str, metric: str | None, mode: Mode | None) -> str:
    """Return the id of an experiment's best run.

    A run whose artifacts cannot be read is skipped with a warning.

    Raises:
        RunNotFound: the experiment does not exist, or has no checkpoint with the metric.
        StorageError: the artifacts of no run can be read.
    """
    best: tuple[float, str] | None = None
    unusable: StorageError | None = None
    readable, measured = False, set[str]()
    for run in server.search_runs([server.once.experiment_id(experiment)], ""):
        own_metric, own_mode = meaning_of_best(run)
        key, direction = metric or own_metric, mode or own_mode
        try:
            store = CheckpointStore(run.info.run_id, artifacts_of(server, run))
            first = _best_by(store, key, direction)
            if key in run.data.metrics and (first is None or key not in first.metrics):
                # Checkpoints have the metric's name in the project; the run has the name that MLflow accepts.
                given = (name for manifest in store.manifests() for name in manifest.metrics)
                key = next((name for name in given if names.key(name) == key), key)
                first = _best_by(store, key, direction)
        except StorageError as error:
            log.warning("Run %s is skipped: %s", run.info.run_id, error)
            unusable = error
            continue
        readable = True
        measured |= run.data.metrics.keys()
        if first is not None and key in first.metrics:
            value = first.metrics[key] * (1 if direction == "min" else -1)
            if best is None or value < best[0]:
                best = value, run.info.run_id
    if unusable is not None and not readable:
        raise StorageError(f"No run of the experiment {experiment!r} can be read. The last error: {unusable}")
    if best is None:
        raise RunNotFound(
            f"No run of the experiment {experiment!r} has a checkpoint with the metric {metric or 'that ranks them'!r}."
            f"{nearest(metric, measured) if metric is not None else ''}"
        )
    return best[1]


def _best_by(store: CheckpointStore, metric: str, mode: Mode) -> Manifest | None:
    return next(iter(CheckpointReader(store, Context(now(), {}, metric, mode)).matching("best")), None)
