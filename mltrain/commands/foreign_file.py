"""Reads checkpoints of other programs: weights, optimizer, counters and history.

Files are read with ``weights_only=True``, so no code in them is executed.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from mltrain.checkpoint import checkpoint_file
from mltrain.checkpoint.finite import nonfinite
from mltrain.checkpoint.manifest import LARGEST_COUNT
from mltrain.checkpoint.packed import is_packed
from mltrain.checkpoint.pytree import flatten
from mltrain.commands.foreign_values import STAND_INS, plain
from mltrain.errors import DamagedCheckpoint, NonFiniteLoss, UsageError, counted, shortened
from mltrain.redaction import first_line

_MOST_EXPANDED, _SMALL = 16, 2**20
"""``torch.save`` does not compress, so contents larger than 16 times their file and 1 MiB are no checkpoint."""
_SPELLINGS = {
    "model": ("model", "model_state_dict", "state_dict", "model_state", "net", "network", "weights", "module"),
    "optimizer": ("optimizer", "optimizer_state_dict", "optim", "optimizer_state", "optimizer_states"),
    "scheduler": ("scheduler", "lr_scheduler", "scheduler_state_dict", "lr_scheduler_state_dict", "lr_schedulers"),
    "epoch": ("epoch", "epochs", "current_epoch", "epoch_num"),
    "step": ("step", "global_step", "iteration", "iter", "n_iter"),
    "history": ("history", "log", "logs", "train_history"),
}


@dataclass
class Foreign:
    """The contents of a foreign checkpoint.

    Attributes:
        model: names to tensors.
        optimizer: state of the optimizer, if present.
        scheduler: state of the schedule, if present.
        epoch: epochs trained, if recorded.
        step: optimizer steps taken, if recorded.
        history: one row an epoch, if its format is known.
        ignored: keys that were not used, and why.
        trainer: state of the ``transformers`` Trainer that wrote the checkpoint, if any.
    """

    model: dict[str, torch.Tensor]
    optimizer: Any = None
    scheduler: Any = None
    epoch: int = 0
    step: int = 0
    history: list[dict[str, float | int]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    trainer: dict[str, Any] | None = None


def read(file: Path) -> Foreign:
    """Read a ``.pth``, ``.pt``, ``.ckpt``, ``.safetensors`` or ``CheckpointManager`` file.

    Raises:
        UsageError: the file does not exist or holds no weights.
        DamagedCheckpoint: the file is damaged, or cannot be read without running code.
    """
    content = content_of(file)
    if not isinstance(content, Mapping):
        raise UsageError(f"{file} holds a {type(content).__name__}. Expected a dictionary with weights.")
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return Foreign(model={str(key): value for key, value in content.items()})
    names = {part: next((s for s in spellings if s in content), None) for part, spellings in _SPELLINGS.items()}
    weights = content.get(names["model"]) if names["model"] else None
    if not isinstance(weights, Mapping) or not any(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UsageError(
            f"{file} has no weights. Expected them under one of {', '.join(_SPELLINGS['model'])}, got "
            f"{shortened(list(map(str, content)), 20) or 'an empty dictionary'}."
        )
    found = Foreign(model={str(k): v for k, v in weights.items() if isinstance(v, torch.Tensor)})
    found.ignored = [f"{names['model']}.{k}: no tensor" for k, v in weights.items() if not isinstance(v, torch.Tensor)]
    for part in ("optimizer", "scheduler"):
        value = content.get(names[part]) if names[part] else None
        listed = value if isinstance(value, Sequence) and not isinstance(value, str) and value else [value]
        setattr(found, part, listed[0] if isinstance(listed[0], Mapping) else None)
        if len(listed) > 1:  # Lightning keeps lists of them
            found.ignored.append(f"{names[part]}: {len(listed) - 1} after the first")
    for part in ("epoch", "step"):
        if names[part] and (number := _count(content[names[part]])) is not None:
            setattr(found, part, number)
    if names["history"]:
        found.history = _rows(content[names["history"]])
    unused = [name for part, name in names.items() if name and not getattr(found, part) and _is_given(content[name])]
    found.ignored += [f"{name}: unreadable value" for name in unused]
    used = {name for name in names.values() if name is not None}
    found.ignored += [f"{key}: unknown key" for key in content if key not in used]
    return found


def finite(file: Path) -> Foreign:
    """Read a file with :func:`read`, and refuse non-finite weights.

    Raises:
        NonFiniteLoss: its weights or optimizer state are not finite.
    """
    foreign = read(file)
    refuse_nonfinite(foreign, str(file))
    return foreign


def refuse_nonfinite(foreign: Foreign, file: str) -> None:
    """Refuse weights or optimizer state that are not finite.

    Raises:
        DamagedCheckpoint: a tensor repeats its numbers so often that it does not fit into memory.
        NonFiniteLoss: weights or optimizer state are not finite.
    """
    flat = flatten({"model": foreign.model, "optimizer": foreign.optimizer}, "model")
    expanded = [name for name, tensor in flat.tensors.items() if _is_expanded(tensor)]
    if expanded:
        raise DamagedCheckpoint(
            f"{file} holds tensors that are far larger than their memory: {shortened(expanded, 5)}. Expected tensors with a "
            "number for each element. Try: tensor.clone() before torch.save."
        )
    wrong = nonfinite(flat.tree, flat.tensors)
    if wrong:
        raise NonFiniteLoss(
            f"{file} cannot be trained on: NaN or infinity in {counted(len(wrong), 'tensor')} of weights or optimizer state. "
            f"Expected finite numbers, got: {shortened(wrong, 5)}. Try: an earlier file of the same training."
        )


def _is_expanded(tensor: torch.Tensor) -> bool:
    return tensor.nbytes > tensor.untyped_storage().nbytes() * _MOST_EXPANDED + _SMALL


def content_of(file: Path) -> Any:
    """Return the tensors and plain values of a file.

    Raises:
        UsageError: the file does not exist.
        DamagedCheckpoint: the file is damaged, or cannot be read without running code.
    """
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise UsageError(f"{file} is a pipe or a device. Expected a file.")
    head = b""
    try:
        with file.open("rb") as opened:
            head = opened.read(40)
        if is_packed(file):
            return _flattened(checkpoint_file.read(file))
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size:
            return load_safetensors(file.read_bytes())
        return _unpickled(file)
    except FileNotFoundError:
        raise UsageError(f"There is no file {file}.") from None
    except IsADirectoryError:
        raise UsageError(f"{file} is a folder. Expected a file.") from None
    except pickle.UnpicklingError as error:
        raise DamagedCheckpoint(
            f"{file} cannot be read without running code that it names"
            f"{culprit}. Expected tensors and plain values. Try: torch.save(model.state_dict(), …) in the program that wrote it."
            if (culprit := _culprit(error))
            else _unreadable(file, head, "")
        ) from None
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        ValueError,
        OSError,
        AssertionError,
        LookupError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        described = isinstance(error, (SafetensorError, RuntimeError, PermissionError)) or str(error).count(" ") > 3
        raise DamagedCheckpoint(_unreadable(file, head, first_line(error) if described else "")) from None


def _unpickled(file: Path) -> Any:
    """Read a file of ``torch.save``.

    Raises:
        ValueError: it is far larger when unpacked, or a TorchScript program.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        if sum(member.file_size for member in members) > file.stat().st_size * _MOST_EXPANDED + _SMALL:
            raise ValueError("its unpacked contents are far larger than the file")
        if any(member.filename.count("/") == 1 and member.filename.endswith("/constants.pkl") for member in members):
            raise ValueError("it is a TorchScript program, which is code")
    with warnings.catch_warnings(), torch.serialization.safe_globals(STAND_INS):  # type: ignore[arg-type]
        warnings.simplefilter("ignore")  # about old formats of torch.save, which are read all the same
        return plain(torch.load(file, map_location="cpu", weights_only=True))


def _unreadable(file: Path, head: bytes, why: str) -> str:
    if head.startswith(b"version https://git-lfs"):
        return f"{file} is a pointer of Git LFS. Expected the file itself. Try: git lfs pull"
    why = why or ("it is empty." if file.stat().st_size == 0 else "it is damaged, or another kind of file.")
    return f"{file} is not a readable checkpoint: {why}"


def _flattened(state: dict[str, Any]) -> dict[str, Any]:
    """Return an ``mltrain`` state with counters and history on top."""
    progress, history = state.get("progress"), state.get("history")
    counters = (
        {name: progress[name] for name in ("step", "epoch") if name in progress}
        if isinstance(progress, Mapping)
        else {}
    )
    rows = {"history": history["rows"]} if isinstance(history, Mapping) and "rows" in history else {}
    return {**state, **counters, **rows}


def _count(value: Any) -> int | None:
    """Return an epoch or a step.

    If it is not a whole number that a checkpoint can have, returns ``None``.
    """
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) > LARGEST_COUNT:
        return None
    return int(value) if value == int(value) and value >= 0 else None


def _is_given(value: Any) -> bool:
    """Return whether a value is neither zero, empty nor ``None``."""
    return value.numel() != 1 or bool(value) if isinstance(value, torch.Tensor) else bool(value)


def _culprit(error: pickle.UnpicklingError) -> str:
    """Return the name of the code that a file needs."""
    named = re.search(r"GLOBAL ([\w.]+) was|(?:GLOBAL|global|function|class) ([\w.]*\w\.\w+)", str(error))
    return f" (it asks for {named[1] or named[2]:.100})" if named else ""


def _rows(history: Any) -> list[dict[str, float | int]]:
    """Return a history of either known form as rows."""
    if isinstance(history, Mapping):
        columns = {str(name): values for name, values in history.items() if isinstance(values, (list, tuple))}
        length = max(map(len, columns.values()), default=0)
        rows = [{name: values[i] for name, values in columns.items() if i < len(values)} for i in range(length)]
    elif isinstance(history, (list, tuple)) and all(isinstance(row, Mapping) for row in history):
        rows = [{str(name): value for name, value in row.items()} for row in history]
    else:
        return []
    numbers = [
        {k: v for k, v in row.items() if isinstance(v, (int, float)) and not isinstance(v, bool)} for row in rows
    ]
    return [{"step": 0, **row, "epoch": number} for number, row in enumerate(numbers, 1)]
