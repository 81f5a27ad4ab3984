"""State of a ``Trainer`` of transformers: in checkpoints, and as its folder."""

import dataclasses
import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mltrain.adapters.origin import Address, Origin
from mltrain.errors import NoCheckpoint, UsageError
from mltrain.ownership.run_folder import home_of
from mltrain.rng import Rng
from mltrain.run import opening
from mltrain.store.durable import make_folder, rename_folder
from mltrain.store.removal import discard_restored
from mltrain.tracking.client import connect

STATE_KEY = "mltrain"
"""The key under which a Trainer's state names the run.

It is among the states of callbacks, where a Trainer without ``MltrainCallback`` ignores it.
"""


def state_of(state: Any, live: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state for a checkpoint, without copying tensors."""
    scaler = getattr(live["optimizer"], "scaler", None)
    return {
        "model": live["model"].state_dict(),
        "optimizer": live["optimizer"].state_dict(),
        "scheduler": live["lr_scheduler"].state_dict(),
        **({"scaler": scaler.state_dict()} if scaler is not None else {}),
        "rng": Rng().state_dict(),
        "trainer": dataclasses.asdict(state),
    }


def restore(run: str | None, which: str = "latest") -> str | None:
    """Write a run's checkpoint as a folder for the Trainer.

    Pass the result to ``Trainer.train(resume_from_checkpoint=…)``. Every file of the checkpoint is verified first. The folder is
    in the run's folder on this host, and replaces earlier restored ones. The best checkpoint is written beside it, for
    ``load_best_model_at_end``. This function writes the pickles itself, from verified tensors and plain values; the Trainer reads
    them with ``weights_only``.

    Args:
        run: id of the run, or its first digits. If ``None``, a new run begins and nothing is restored.
        which: ``latest``, ``best``, ``interrupted``, ``epoch:N``, ``step:N`` or the name of a checkpoint.

    Returns:
        Path of the folder. ``None`` if ``run`` is ``None``, or before the run's first checkpoint.

    Raises:
        NoCheckpoint: no checkpoint matches ``which``, or all that match are damaged.
        RunNotFound: the run does not exist.
        RunHeld: another process writes to the run.
        TrackingError: the tracking server does not answer.
        UsageError: another program saved the checkpoint.
        StorageError: the disk refuses to write.
    """
    if run is None:
        return None
    server = connect(retry_seconds=10.0)
    run_id = opening.resumable(server, run, take_over=False).info.run_id
    if Origin.find(Address(run_id)) is None:
        return None
    origin = Origin.read(Address(run_id, which))
    parts = dict(origin.state)
    if "trainer" not in parts or "optimizer" not in parts:
        raise UsageError(
            f"{origin.manifest.title} ({origin.manifest.name}) of run {run_id} holds {', '.join(parts)}. Expected a checkpoint "
            f"that MltrainCallback saved. Try: mltrain pull {run_id} --to FOLDER, for the weights alone"
        )
    home = home_of(server, run_id) / "restored"
    make_folder(home)
    for earlier in home.iterdir():
        discard_restored(earlier)
    state, step = parts["trainer"], origin.manifest.step
    own = state["stateful_callbacks"].setdefault(STATE_KEY, {"args": {}, "attributes": {}})
    own["attributes"] |= {"run_id": run_id, "checkpoint": origin.manifest.name}
    state["best_model_checkpoint"] = _write_best(home, run_id, state["best_global_step"], step)
    files = {"model.safetensors": parts["model"], "trainer_state.json": state}
    files |= {f"{name}.pt": parts[name] for name in ("optimizer", "scheduler", "scaler") if name in parts}
    if "rng" in parts:  # imported checkpoints have none
        files["rng_state.pth"] = _generator_states(parts["rng"])
    return _write_checkpoint(home, step, files)


def _write_best(home: Path, run_id: str, best_step: int | None, step: int) -> str | None:
    """Write the best checkpoint's weights, unless retention removed it."""
    if not best_step or best_step == step:
        return str(home / f"checkpoint-{step}") if best_step else None
    with suppress(NoCheckpoint):
        weights = Origin.read(Address(run_id, f"step:{best_step}")).state["model"]
        return _write_checkpoint(home, best_step, {"model.safetensors": weights})
    return None


def _generator_states(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return generator states in the layout of a Trainer."""
    version, words, gauss = state["python"]
    python = (version, tuple(int(word) for word in words), gauss)
    own = {"python": python, "numpy": state["numpy"], "cpu": state["torch"]}
    return {**own, "cuda": state["cuda"][state.get("cuda_device", 0)]} if state["cuda"] else own


def _write_checkpoint(home: Path, step: int, files: Mapping[str, Any]) -> str:
    """Write a Trainer's checkpoint atomically; return its path.

    Args:
        home: parent of the folder.
        step: optimizer steps done; the folder is called ``checkpoint-STEP``.
        files: file name to content: tensors by name for ``.safetensors``, JSON values for ``.json``, else a value to pickle.
    """
    folder, target = home / f"checkpoint-{step}.{secrets.token_hex(4)}.tmp", home / f"checkpoint-{step}"
    make_folder(folder)
    for name, content in files.items():
        if name.endswith(".safetensors"):
            separate = {key: value.clone().contiguous() for key, value in content.items()}  # tied weights share memory
            save_file(separate, folder / name, metadata={"format": "pt"})
        elif name.endswith(".json"):
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        else:
            torch.save(content, folder / name)
    rename_folder(folder, target, lambda: None)
    return str(target)
