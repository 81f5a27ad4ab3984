"""The names that artifacts and staged files have: what is no such name is neither read nor removed."""

import re

from mltrain.errors import StorageError

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
OUTPUTS = "output"
OUTPUT_RECORD = "output.json"
"""What a stage of a pipeline made: ``output/a<attempt>/``, of which this file is written last and removed first."""
STAGING = ".mltrain-staging"
"""The folder beside the artifacts in which checkpoints are staged where these are on this machine."""
OUTBOX = "outbox"
"""The name of the folder in which pictures wait for their upload."""

CHECKPOINT = re.compile(r"step-\d{9}-a\d{2,6}", re.ASCII)
STAGED = re.compile(CHECKPOINT.pattern + r"(\.[0-9a-f]{8}\.tmp)?", re.ASCII)
PACKED = re.compile(
    r"(best_model|interrupt(?:ed)?_checkpoint|latest_checkpoint|checkpoint_(?:epoch|step)_(\d{1,9}))\.pth", re.ASCII
)
"""A checkpoint that is one file, with the number of its epoch or step: of a manager, or exported by a training."""
OUTPUT = re.compile(r"a\d{2,6}", re.ASCII)
RESTORED = re.compile(r"checkpoint-\d{1,9}(\.[0-9a-f]{8}\.tmp)?", re.ASCII)
"""A folder that was written for another trainer to resume from."""
CACHED = re.compile(r"[0-9a-f]{64}", re.ASCII)
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.ASCII)
COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._+@,=()#~-]{0,199}", re.ASCII)
MODEL = re.compile(r"m-[0-9a-f]{32}", re.ASCII)
UPLOADING = ".artifact.uploading."


def validated(path: str) -> str:
    """Return a relative artifact path unchanged, or refuse it.

    Raises:
        StorageError: it is empty, absolute, has ``..``, control or other unusual characters in a component.
    """
    if not path or not all(COMPONENT.fullmatch(part) for part in path.split("/")):
        raise StorageError(f"{path!r:.200} is not a path of an artifact: plain names joined by / are expected.")
    return path


def output_name(name: str) -> str:
    """Return the name of what an attempt of a stage made unchanged, or refuse it.

    Raises:
        StorageError: it is no such name.
    """
    if not OUTPUT.fullmatch(name):
        raise StorageError(f"{name!r:.80} is not the name of an output; nothing was removed.")
    return name


def refuse_unless_model(place: str, model_id: str) -> None:
    """Refuse a place that is not where the files of a LoggedModel are.

    Raises:
        StorageError: it is another place.
    """
    place = place.rstrip("/")
    if not MODEL.fullmatch(model_id) or not place.endswith(f"/models/{model_id}/artifacts") or ".." in place:
        raise StorageError(
            f"{place} is not where the files of the LoggedModel {model_id!r:.80} are; nothing was removed."
        )
