"""Outputs of pipeline stages: stored files with digests, verified copies.

The output of a training is the weights of a checkpoint. That of a stage that makes files is below ``output/a<attempt>/`` among
the artifacts of its run; ``output.json`` there is written last, and without it the output does not count.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mltrain.checkpoint.manifest import CheckpointId, FileEntry, Manifest
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import DamagedCheckpoint, MltrainError, NoCheckpoint, StorageError
from mltrain.ownership.host_lock import lock_file
from mltrain.ownership.run_folder import outputs_home
from mltrain.store.artifacts import Artifacts, sha256_of
from mltrain.store.artifacts import validated as valid_path
from mltrain.store.durable import replace_file, set_aside
from mltrain.store.names import CHECKPOINTS, OUTPUT_RECORD, OUTPUTS
from mltrain.store.removal import discard_cached
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.run_artifacts import artifacts_of
from mltrain.tracking.tags import STAGE_INPUTS_TAG

log = logging.getLogger(__name__)

_SCHEMA = 1
_LARGEST_RECORD = 64 * 2**20


@dataclass(frozen=True)
class Output:
    """The output of a run.

    Attributes:
        run_id: of the run.
        name: of a checkpoint, or ``a<attempt>`` for files.
        files: path below the output's folder to size and SHA-256.
    """

    run_id: str
    name: str
    files: Mapping[str, FileEntry]

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents: equal for equal outputs of any run."""
        listed = [(name, entry.size, entry.sha256) for name, entry in sorted(self.files.items())]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Total size of the files in bytes."""
        return sum(entry.size for entry in self.files.values())

    @property
    def folder(self) -> str:
        """The output's folder among the artifacts of the run."""
        return f"{CHECKPOINTS if CheckpointId.parse(self.name) else OUTPUTS}/{self.name}"

    def __str__(self) -> str:
        return f"{self.name} of run {self.run_id} ({len(self.files)} files, {self.size / 1e6:.1f} MB)"


def trained(manifest: Manifest) -> Output:
    """Return the output of a training: the weights of a checkpoint."""
    files = {name: entry for name, entry in manifest.files.items() if name.startswith("model")}
    return Output(manifest.run_id, manifest.name, files)


def made(run_id: str, artifacts: Artifacts) -> Output:
    """Return the newest complete output of a file-making run.

    Raises:
        NoCheckpoint: no attempt has a complete output.
        DamagedCheckpoint: the record of the output is damaged.
    """
    names = sorted((e.name for e in artifacts.entries(OUTPUTS) if e.is_dir), key=lambda n: (len(n), n), reverse=True)
    for name in names:
        found = _recorded(run_id, artifacts, name)
        if found is not None:
            return found
    raise NoCheckpoint(f"Run {run_id} has no complete output.")


def _recorded(run_id: str, artifacts: Artifacts, name: str) -> Output | None:
    try:
        content = json.loads(artifacts.read(f"{OUTPUTS}/{name}/{OUTPUT_RECORD}", _LARGEST_RECORD))
        files = {valid_path(path): FileEntry(**entry) for path, entry in content["files"].items()}
        output = Output(run_id, name, files)
        if (content["schema"], content["run_id"], content["digest"]) != (_SCHEMA, run_id, output.digest):
            raise ValueError("it is of another run or format")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedCheckpoint:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{OUTPUT_RECORD} of {name} is damaged: {error}") from None
    return output


def commit(run_id: str, artifacts: Artifacts, name: str, folder: Path) -> Output:
    """Upload a folder to the artifact store, its record last.

    Raises:
        StorageError: the store fails, or a file has a name that no artifact can have.
    """
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        relative = valid_path(file.relative_to(folder).as_posix())
        if relative == OUTPUT_RECORD:
            raise StorageError(f"{OUTPUT_RECORD} is reserved for the record of the output. Expected another name.")
        content = file.read_bytes()
        files[relative] = FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        _put(artifacts, file, f"{OUTPUTS}/{name}/{relative}", content)
    output = Output(run_id, name, files)
    record = {
        "schema": _SCHEMA,
        "run_id": run_id,
        "digest": output.digest,
        "files": {path: entry.model_dump() for path, entry in files.items()},
    }
    with tempfile.TemporaryDirectory(prefix="mltrain-") as temporary:
        file = Path(temporary) / OUTPUT_RECORD
        file.write_text(json.dumps(record, indent=1), encoding="utf-8")
        _put(artifacts, file, f"{OUTPUTS}/{name}/{OUTPUT_RECORD}", file.read_bytes())
    return output


def _put(artifacts: Artifacts, file: Path, path: str, content: bytes) -> None:
    if artifacts.local_root is not None:
        replace_file(artifacts.local_root / path, content)  # flushes to the disk, unlike MLflow
    else:
        artifacts.upload(file, path.rpartition("/")[0])


def damage(artifacts: Artifacts, output: Output) -> str | None:
    """Return the damage of an output. ``None`` if all files are intact."""
    for name, entry in sorted(output.files.items()):
        try:
            _received(artifacts, output, name, entry)
        except DamagedCheckpoint as error:
            return str(error)
    return None


def fetched(server: TrackingClient, output: Output) -> Path:
    """Return a local folder with exactly an output's verified files.

    An existing copy is verified, and its missing or damaged files are downloaded again.

    Raises:
        DamagedCheckpoint: a file in the artifact store is missing or damaged.
        StorageError: this machine's disk fails.
    """
    folder = outputs_home(server) / output.digest
    with lock_file(folder.with_name(f"{folder.name}.lock")):
        artifacts: Artifacts | None = None
        if (os.path.lexists(folder) and not folder.is_dir()) or any((folder / name).is_dir() for name in output.files):
            log.warning("%s is damaged. It was renamed to %s and is downloaded again.", folder, set_aside(folder).name)
        for file in [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]:
            if file.relative_to(folder).as_posix() not in output.files or file.is_symlink():
                discard_cached(folder, file)
        for name, entry in output.files.items():
            if not _intact(folder / name, entry):
                if artifacts is None:
                    artifacts = artifacts_of(server, server.run(output.run_id))
                replace_file(folder / name, bytes(_received(artifacts, output, name, entry)))
    return folder


def inputs_of(run: Any) -> dict[str, dict[str, str]]:
    """Return the inputs recorded in a stage run's tag.

    Each key has ``run``, ``name`` and ``digest`` of an output.
    """
    try:
        given = json.loads(run.data.tags.get(STAGE_INPUTS_TAG, "{}"))
        return {str(key): {word: str(one[word]) for word in ("run", "name", "digest")} for key, one in given.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("The inputs of run %s cannot be read from its tag %s.", run.info.run_id, STAGE_INPUTS_TAG)
        return {}


def fetched_inputs(server: TrackingClient, run: Any, given: Collection[str] = ()) -> dict[str, str]:
    """Return a folder with each verified input of a stage.

    Args:
        server: tracking server that has the runs.
        run: of the stage.
        given: keys of inputs to leave out.

    Raises:
        NoCheckpoint, DamagedCheckpoint: an input is missing or has changed.
    """
    wanted = {key: one for key, one in inputs_of(run).items() if key not in given}
    return {key: str(fetched(server, _given(server, key, one))) for key, one in wanted.items()}


def _given(server: TrackingClient, key: str, one: Mapping[str, str]) -> Output:
    run_id, name = one["run"], one["name"]
    advice = "Try: mltrain pipeline NAME --mode skip, which trains this stage again"
    try:
        artifacts = artifacts_of(server, server.run(run_id))
        identity = CheckpointId.parse(name)
        if identity is None:
            output = _recorded(run_id, artifacts, name)
        else:
            manifest = CheckpointStore(run_id, artifacts).manifest(identity)
            output = trained(manifest) if manifest is not None else None
    except StorageError:
        raise
    except MltrainError as error:
        raise NoCheckpoint(f"The input {key}, {name} of run {run_id}, cannot be read: {error} {advice}") from None
    if output is None or output.digest != one["digest"]:
        raise NoCheckpoint(f"The input {key}, {name} of run {run_id}, no longer exists. {advice}")
    return output


def described(inputs: Mapping[str, Output]) -> str:
    """Return the text of the tag that :func:`inputs_of` reads."""
    return json.dumps({key: {"run": out.run_id, "name": out.name, "digest": out.digest} for key, out in inputs.items()})


def _received(artifacts: Artifacts, output: Output, name: str, entry: FileEntry) -> bytearray:
    try:
        content = artifacts.read(f"{output.folder}/{name}", entry.size)
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedCheckpoint(f"{name} of {output.name} is missing") from None
    except (StorageError, DamagedCheckpoint):
        raise
    except OSError as error:
        raise DamagedCheckpoint(f"{name} of {output.name} cannot be read: {error.strerror or error}") from None
    if len(content) != entry.size or sha256_of(content) != entry.sha256:
        raise DamagedCheckpoint(f"{name} of {output.name} is not what was committed")
    return content


def _intact(file: Path, entry: FileEntry) -> bool:
    try:
        return file.stat().st_size == entry.size and hashlib.sha256(file.read_bytes()).hexdigest() == entry.sha256
    except OSError:
        return False


def unfinished(artifacts: Artifacts) -> list[str]:
    """Return the names of incomplete outputs."""
    return [
        entry.name
        for entry in artifacts.entries(OUTPUTS)
        if entry.is_dir and OUTPUT_RECORD not in {inner.name for inner in artifacts.entries(f"{OUTPUTS}/{entry.name}")}
    ]
