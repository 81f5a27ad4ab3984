"""A checkpoint of a run as the folder that a ``Trainer`` of transformers resumes from."""

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
from mltrain.run import opening
from mltrain.store.durable import make_folder, rename_folder
from mltrain.store.removal import discard_restored
from mltrain.tracking.client import connect

NOTE = "mltrain"
"""Where a Trainer's state names its run: among the states of callbacks, of which a Trainer passes over those it lacks."""


def restore(run: str | None, which: str = "latest") -> str | None:
    """Write a checkpoint of a run as a local ``checkpoint-N``, for ``Trainer.train(resume_from_checkpoint=…)``.

    Every file of the checkpoint is verified first. The folder is in the run's home on this host, and replaces what was
    restored there before. The best checkpoint is written beside it, for ``load_best_model_at_end``. The pickles in it are made
    here, of verified tensors and plain values; the Trainer reads them with ``weights_only``.

    Args:
        run: id of the run, or its first digits. If ``None``, a new run is wanted.
        which: ``latest``, ``best``, ``interrupted``, ``epoch:N``, ``step:N`` or the name of a checkpoint.

    Returns:
        The folder; ``None`` where ``run`` is ``None`` or has no checkpoint yet.

    Raises:
        NoCheckpoint: the run has no such checkpoint, or only damaged ones.
        RunNotFound, RunHeld, TrackingError: the run cannot be continued.
        UsageError: another program saved the checkpoint.
    """
    if run is None:
        return None
    server = connect(retry_seconds=10.0)
    run_id = opening.resumable(server, run, take_over=False).info.run_id
    if Origin.reached(Address(run_id)) is None:
        return None
    origin = Origin.read(Address(run_id, which))
    parts = dict(origin.state)
    if "trainer" not in parts or "optimizer" not in parts:
        raise UsageError(
            f"{origin.manifest.title} ({origin.manifest.name}) of run {run_id} holds {', '.join(parts)}. Expected a checkpoint "
            f"that MltrainCallback saved. Try: the weights alone, with mltrain pull {run_id} --to FOLDER."
        )
    home = home_of(server, run_id) / "restored"
    make_folder(home)
    for earlier in home.iterdir():
        discard_restored(earlier)
    state, step = parts["trainer"], origin.manifest.step
    note = (state["stateful_callbacks"] or {}).get(NOTE, {"args": {}, "attributes": {}})
    named = {"run_id": run_id, "checkpoint": origin.manifest.name}
    state["stateful_callbacks"] = {
        **state["stateful_callbacks"],
        NOTE: {**note, "attributes": {**note["attributes"], **named}},
    }
    state["best_model_checkpoint"] = _best(home, run_id, state["best_global_step"], step)
    numbers = {"rng_state.pth": _random_numbers(parts["rng"])} if "rng" in parts else {}  # an imported one has none
    pickled = {f"{name}.pt": parts[name] for name in ("optimizer", "scheduler", "scaler") if name in parts}
    return str(
        _written(home, step, {"model.safetensors": parts["model"], **pickled, **numbers, "trainer_state.json": state})
    )


def _best(home: Path, run_id: str, best_step: int | None, step: int) -> str | None:
    """Write the weights of the best checkpoint, if retention has kept it."""
    if not best_step or best_step == step:
        return str(home / f"checkpoint-{step}") if best_step else None
    with suppress(NoCheckpoint):
        weights = Origin.read(Address(run_id, f"step:{best_step}")).state["model"]
        return str(_written(home, best_step, {"model.safetensors": weights}))
    return None


def _random_numbers(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states of the generators as a Trainer names them."""
    version, words, gauss = state["python"]
    python = (version, tuple(int(word) for word in words), gauss)
    own = {"python": python, "numpy": state["numpy"], "cpu": state["torch"]}
    return {**own, "cuda": state["cuda"][state.get("cuda_device", 0)]} if state["cuda"] else own


def _written(home: Path, step: int, files: Mapping[str, Any]) -> Path:
    """Write the files of a Trainer's checkpoint; the folder gets its name when all of them are complete."""
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
    return target
