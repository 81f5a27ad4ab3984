"""Imports checkpoints of other programs as the first checkpoint of a run.

Files are read with ``weights_only=True``, so no code in them is executed.
"""

import logging
import pickle
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import nn

from mltrain import device as devices
from mltrain.checkpoint.finite import nonfinite
from mltrain.checkpoint.pytree import flatten
from mltrain.commands.checks import policy_of
from mltrain.errors import DamagedCheckpoint, NonFiniteLoss, StateMismatch, UsageError, shortened
from mltrain.manager import CheckpointManager
from mltrain.ownership.run_folder import grace_seconds
from mltrain.project import Project
from mltrain.provenance import fingerprint
from mltrain.redaction import harmless
from mltrain.restoring.modules import fitted
from mltrain.rng import seed_everything
from mltrain.run import opening
from mltrain.run.naming import experiment_for
from mltrain.run.tracked import TrackedRun
from mltrain.signals import StopRequest
from mltrain.state import TrainState
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import IMPORTED_TAG
from mltrain.trainer.loop import Trainer

log = logging.getLogger(__name__)

_SPELLINGS = {
    "model": ("model", "model_state_dict", "state_dict", "model_state", "net", "network", "weights", "module"),
    "optimizer": ("optimizer", "optimizer_state_dict", "optim", "optimizer_state", "optimizer_states"),
    "scheduler": ("scheduler", "lr_scheduler", "scheduler_state_dict", "lr_scheduler_state_dict", "lr_schedulers"),
    "epoch": ("epoch", "epochs", "current_epoch", "epoch_num"),
    "step": ("step", "global_step", "iteration", "iter", "n_iter"),
    "history": ("history", "log", "logs", "train_history"),
}
_PREFIXES = ("module.", "model.", "net.", "network.", "_orig_mod.", "model.module.")


@dataclass
class Foreign:
    """The contents of a foreign checkpoint.

    Attributes:
        model: names to tensors.
        optimizer: state of the optimizer, if present.
        scheduler: state of the schedule, if present.
        epoch: epochs trained, if recorded.
        step: optimizer steps taken, if recorded.
        history: one row an epoch, as far as its form is known.
        ignored: keys that were not used.
    """

    model: dict[str, torch.Tensor]
    optimizer: Any = None
    scheduler: Any = None
    epoch: int = 0
    step: int = 0
    history: list[dict[str, float | int]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


@dataclass
class Report:
    """Lines that list what was taken from the file and what was not.

    ``fresh`` names the parts of the project's task that begin as the project builds them.
    """

    taken: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    run_id: str = ""
    checkpoint: str = ""


def read(file: Path) -> Foreign:
    """Read a ``.pth``, ``.pt``, ``.ckpt`` or ``.safetensors`` file.

    Raises:
        UsageError: the file does not exist or holds no weights.
        DamagedCheckpoint: the file cannot be read without running code, or not at all.
    """
    content = _content(file)
    if not isinstance(content, Mapping):
        raise UsageError(f"{file} holds a {type(content).__name__}; a dictionary with weights was expected.")
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return Foreign(model={str(key): value for key, value in content.items()})
    names = {part: next((s for s in spellings if s in content), None) for part, spellings in _SPELLINGS.items()}
    weights = content.get(names["model"]) if names["model"] else None
    if not isinstance(weights, Mapping) or not any(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UsageError(
            f"{file} has no weights under any of {', '.join(_SPELLINGS['model'])}; its keys are: {', '.join(map(str, content))}."
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


def import_file(
    file: Path, server: TrackingClient, project: Project | None, overrides: Mapping[str, Any], experiment: str | None
) -> Report:
    """Import a file as the first checkpoint of a new run.

    With a project, the weights are fitted to the project's model and the run can be resumed like any other. Without one,
    the parts are stored unchanged, for ``mltrain train PROJECT --resume-run`` and :class:`CheckpointManager`.

    Raises:
        UsageError, DamagedCheckpoint: the file cannot be used.
        NonFiniteLoss: its weights or optimizer state are not finite.
        StateMismatch: the weights do not fit the project's model.
    """
    foreign, report = read(file), Report()
    flat = flatten({"model": foreign.model, "optimizer": foreign.optimizer}, "model")
    wrong = nonfinite(flat.tree, flat.tensors)
    if wrong:
        raise NonFiniteLoss(
            f"{file} cannot be trained on: {len(wrong)} tensor(s) of weights or optimizer state hold NaN or infinity. Expected "
            f"finite numbers, got: {shortened(wrong, 5)}. Try: an earlier file of the same training."
        )
    if project is None:
        run = opening.create(server, experiment, file.stem, "imported", {IMPORTED_TAG: file.name})
        return _stored(run, foreign, report)
    config = project.config.load([project.config_file] if project.config_file else [], overrides=overrides)
    devices.set_up(config.num_threads, config.deterministic, config.device)
    seed_everything(config.seed)
    experiment = experiment_for(project.name, experiment or config.experiment)
    run = opening.create(server, experiment, file.stem, project.name, {IMPORTED_TAG: file.name})
    try:
        run.record_start(config.resolved(), config.recorded(), project.name)
        run.attempt.versions, run.attempt.code = fingerprint.versions(), fingerprint.code(project.place)
        run.attempt.data = fingerprint.data(config.data_places())
        task = project.build(config)
        policy = policy_of(config, task.policy)
        manager = CheckpointManager(run, policy=policy, metric=config.best_metric, mode=config.best_mode)
        trainer = Trainer(task, config, run, manager, StopRequest(), data=run.attempt.data)
        _apply(foreign, trainer, report)
        trainer.save("imported")
        manager.wait()
    except BaseException as error:
        run.close("FAILED", str(error).splitlines()[0], grace_seconds())
        raise
    run.record.attempt()
    return _reported(run, manager, report)


def _stored(run: TrackedRun, foreign: Foreign, report: Report) -> Report:
    run.record_start({}, {}, "")
    manager = CheckpointManager(run)
    parts = {
        "model": foreign.model,
        "optimizer": foreign.optimizer,
        "scheduler": foreign.scheduler,
        "history": {"rows": foreign.history} if foreign.history else None,
    }
    state = {name: part for name, part in parts.items() if part}
    state["progress"] = {"step": foreign.step, "epoch": foreign.epoch, "batch": 0}
    manager.save(state, step=foreign.step, epoch=foreign.epoch, kind="imported")
    manager.wait()
    report.taken += [f"{name}: as it is" for name in state]
    report.left += [f"{key}: nothing known is called so" for key in foreign.ignored]
    return _reported(run, manager, report)


def _reported(run: TrackedRun, manager: CheckpointManager, report: Report) -> Report:
    failure = manager.failure
    manager.abandon()
    run.close("FAILED" if failure else "FINISHED", str(failure or "imported"), grace_seconds())
    if failure is not None:
        raise failure
    report.run_id = run.id
    staged = manager.committer.newest_staged
    report.checkpoint = staged.name if staged is not None else ""
    return report


def _apply(foreign: Foreign, trainer: Trainer, report: Report) -> None:
    parts = trainer.state.parts
    model = parts.get("model")
    if not isinstance(model, nn.Module):
        raise UsageError("The project's step has no part called 'model', so there is nothing to put the weights into.")
    weights, prefix = _renamed(foreign.model, model)
    model.load_state_dict(weights)
    report.taken.append(f"model: {len(weights)} tensors" + (f", {prefix}" if prefix else ""))
    report.fresh = [name for name in trainer.task.parts() if name != "model"]
    for name in ("optimizer", "scheduler"):
        state, part = getattr(foreign, name), parts.get(name)
        if state is None or part is None:
            report.left.append(f"{name}: not in the {'file' if state is None else 'project'}")
            continue
        try:
            TrainState({name: part}).restore({name: state})
            report.taken.append(name)
            report.fresh.remove(name)
        except StateMismatch as error:
            report.left.append(f"{name}: does not fit ({error})")
    epoch = foreign.epoch
    step = foreign.step or epoch * (trainer.batches or 0)
    trainer.progress.load_state_dict({"step": step, "epoch": epoch, "batch": 0})
    loader = trainer.task.loader
    loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "batch": 0})
    report.taken.append(f"progress: epoch {epoch}, step {step}")
    if foreign.history:
        trainer.history.load_state_dict({"rows": foreign.history})
        report.taken.append(f"history: {len(foreign.history)} epochs")
    report.left += [f"{key}: nothing known is called so" for key in foreign.ignored]


def _renamed(weights: Mapping[str, torch.Tensor], model: nn.Module) -> tuple[dict[str, Any], str]:
    """Map foreign names to a model's names, with or without a usual prefix."""
    own = {key.replace("_orig_mod.", "") for key in model.state_dict()}
    best, said = dict(weights), ""
    for prefix in _PREFIXES:
        stripped = {key.removeprefix(prefix): value for key, value in weights.items()}
        if len(own & stripped.keys()) > len(own & best.keys()):
            best, said = stripped, f"their prefix {prefix!r} taken off"
        added = {prefix + key: value for key, value in weights.items()}
        if len(own & added.keys()) > len(own & best.keys()):
            best, said = added, f"the prefix {prefix!r} put before them"
    try:
        return fitted(best, model), said
    except StateMismatch as error:
        raise StateMismatch(
            "the project's model",
            missing=error.missing,
            unexpected=error.unexpected,
            reshaped=error.reshaped,
            advice="Give the configuration that the file was trained with as key=value, or import it without a project.",
        ) from None


def _content(file: Path) -> Any:
    try:
        with file.open("rb") as opened:
            head = opened.read(9)
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size:
            return load_safetensors(file.read_bytes())
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"There is no file {file}.") from None
    except IsADirectoryError:
        raise UsageError(f"{file} is a folder; a file was expected.") from None
    except pickle.UnpicklingError as error:
        raise DamagedCheckpoint(
            f"{file} cannot be read without running code that it names, and is therefore not read"
            f"{_culprit(error)}. Expected tensors and plain values. Try: torch.save(model.state_dict(), …) where it was made."
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise DamagedCheckpoint(f"{file} is not a checkpoint that can be read: {_first_line(error)}") from None


def _culprit(error: pickle.UnpicklingError) -> str:
    """Return what the file asks to run, as far as torch names it; its own advice is to run it."""
    named = re.search(r"(?:GLOBAL|global|function|class) ([\w.]*\w\.\w+)", str(error))
    return f" (it asks for {named[1]:.100})" if named else ""


def _first_line(error: Exception) -> str:
    lines = harmless(re.sub(r"\x1b\[[0-9;]*m", "", str(error))).splitlines()
    return textwrap.shorten(lines[0], 300, placeholder=" …") if lines else type(error).__name__


def _rows(history: Any) -> list[dict[str, float | int]]:
    """Return a history as rows; it is a list of mappings or a mapping of lists."""
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
