"""Reads checkpoints of other programs: weights, optimizer, counters and history.

Files are read with ``weights_only=True``, so no code in them is executed.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from mltrain.checkpoint import checkpoint_file
from mltrain.checkpoint.finite import nonfinite
from mltrain.checkpoint.packed import is_packed
from mltrain.checkpoint.pytree import flatten
from mltrain.errors import DamagedCheckpoint, NonFiniteLoss, UsageError, shortened
from mltrain.redaction import first_line

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
        ignored: keys that were not used.
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
            f"{', '.join(map(str, content))}."
        )
    found = Foreign(model={str(k): v for k, v in weights.items() if isinstance(v, torch.Tensor)})
    for part in ("optimizer", "scheduler"):
        value = content.get(names[part]) if names[part] else None
        value = value[0] if isinstance(value, Sequence) and value else value  # Lightning keeps lists of them
        setattr(found, part, value if isinstance(value, Mapping) else None)
    for part in ("epoch", "step"):
        value = content.get(names[part]) if names[part] else None
        if isinstance(value, int) and not isinstance(value, bool):
            setattr(found, part, value)
    if names["history"]:
        found.history = _rows(content[names["history"]])
    used = {name for name in names.values() if name is not None}
    found.ignored = [str(key) for key in content if key not in used]
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
        NonFiniteLoss: weights or optimizer state are not finite.
    """
    flat = flatten({"model": foreign.model, "optimizer": foreign.optimizer}, "model")
    wrong = nonfinite(flat.tree, flat.tensors)
    if wrong:
        raise NonFiniteLoss(
            f"{file} cannot be trained on: {len(wrong)} tensor(s) of weights or optimizer state hold NaN or infinity. Expected "
            f"finite numbers, got: {shortened(wrong, 5)}. Try: an earlier file of the same training."
        )


def content_of(file: Path) -> Any:
    """Return the tensors and plain values of a file.

    Raises:
        UsageError: the file does not exist.
        DamagedCheckpoint: the file is damaged, or cannot be read without running code.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(9)
        if is_packed(file):
            return _flattened(checkpoint_file.read(file))
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size:
            return load_safetensors(file.read_bytes())
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"There is no file {file}.") from None
    except IsADirectoryError:
        raise UsageError(f"{file} is a folder. Expected a file.") from None
    except pickle.UnpicklingError as error:
        raise DamagedCheckpoint(
            f"{file} cannot be read without running code that it names"
            f"{_culprit(error)}. Expected tensors and plain values. Try: torch.save(model.state_dict(), …) in the program that "
            "wrote it."
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise DamagedCheckpoint(f"{file} is not a readable checkpoint: {first_line(error)}") from None


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


def _culprit(error: pickle.UnpicklingError) -> str:
    """Return the name of the code that a file needs."""
    named = re.search(r"(?:GLOBAL|global|function|class) ([\w.]*\w\.\w+)", str(error))
    return f" (it asks for {named[1]:.100})" if named else ""


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
