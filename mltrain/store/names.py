"""Valid names of artifacts and staged files.

A file with another name is neither read nor removed.
"""

import re

from mltrain.errors import StorageError

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
OUTPUTS = "output"
OUTPUT_RECORD = "output.json"
"""The record in a stage's output folder, ``output/a<attempt>/``; written last and removed first."""
STAGING = ".mltrain-staging"
"""The staging folder beside artifacts on this machine."""
OUTBOX = "outbox"
"""The folder in which pictures wait for their upload."""

CHECKPOINT = re.compile(r"step-\d{9}-a\d{2,6}", re.ASCII)
STAGED = re.compile(CHECKPOINT.pattern + r"(\.[0-9a-f]{8}\.tmp)?", re.ASCII)
PACKED = re.compile(
    r"(best_model|interrupt(?:ed)?_checkpoint|latest_checkpoint|checkpoint_(?:epoch|step)_(\d{1,9}))\.pth", re.ASCII
)
"""A packed checkpoint of a manager or an export, with its epoch or step."""
OUTPUT = re.compile(r"a\d{2,6}", re.ASCII)
RESTORED = re.compile(r"checkpoint-\d{1,9}(\.[0-9a-f]{8}\.tmp)?", re.ASCII)
"""A folder written for another trainer to resume from."""
CACHED = re.compile(r"[0-9a-f]{64}", re.ASCII)
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.ASCII)
COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._+@,=()#~-]{0,199}", re.ASCII)
MODEL = re.compile(r"m-[0-9a-f]{32}", re.ASCII)
UPLOADING = ".artifact.uploading."


def validated(path: str) -> str:
    """Return a relative artifact path if it is valid.

    Raises:
        StorageError: it is empty or absolute, or a component is ``..`` or has control or other unusual characters.
    """
    if not path or not all(COMPONENT.fullmatch(part) for part in path.split("/")):
        raise StorageError(f"{path!r:.200} is not an artifact path. Expected plain names joined by /.")
    return path


def output_name(name: str) -> str:
    """Return a stage output's name if it is valid.

    Raises:
        StorageError: it is not such a name.
    """
    if not OUTPUT.fullmatch(name):
        raise StorageError(f"{name!r:.80} is not the name of an output; nothing was removed.")
    return name


def refuse_unless_model(place: str, model_id: str) -> None:
    """Raise an error unless a path holds a LoggedModel's files.

    Raises:
        StorageError: it is another path.
    """
    place = place.rstrip("/")
    if not MODEL.fullmatch(model_id) or not place.endswith(f"/models/{model_id}/artifacts") or ".." in place:
        raise StorageError(f"{place} does not hold the files of the LoggedModel {model_id!r:.80}; nothing was removed.")
