"""``mltrain checkpoints``, ``inspect``, ``verify``, ``pin`` and ``unpin``."""

import json
import math
import sys
from typing import Any

import typer

from mltrain.cli import app
from mltrain.cli.arguments import JSON
from mltrain.cli.progress import arrived_of, progress

_RUN = typer.Argument(..., metavar="ID", help="The id of the run, or its first digits.")
_SOURCE = typer.Argument(
    ...,
    metavar="ID|FOLDER|FILE",
    help="The id of a run or its first digits, a folder of checkpoint files, or one file.",
)
_WHICH = "latest, best, interrupted, epoch:N, step:N or a name."


@app.command()
def checkpoints(run_id: str = _SOURCE, as_json: bool = JSON) -> None:
    """List all checkpoints of a run, the newest last."""
    from mltrain.checkpoint.manifest import current_line
    from mltrain.checkpoint.retention import best_of
    from mltrain.run.checkpoints import open_checkpoints

    found = open_checkpoints(run_id)
    manifests = found.all()
    line = current_line(manifests)
    best, on_line, pins = (
        best_of(line, found.notes.context),
        {manifest.id for manifest in line},
        found.notes.context.pins,
    )

    def words(manifest: Any) -> list[str]:
        facts = {
            "latest": bool(line) and manifest.id == line[-1].id,
            "best": best is not None and manifest.id == best.id,
            "pinned": manifest.id in pins,
            "abandoned": manifest.id not in on_line,
        }
        return [word for word, true in facts.items() if true]

    if as_json:
        print(json.dumps([{**_facts(manifest), "is": words(manifest)} for manifest in manifests], indent=1))
        return
    from mltrain.cli.tables import table_that_fits

    metric = found.notes.context.metric
    table_that_fits(
        f"Checkpoints of {found.store.title}",
        ("checkpoint", "is", "epoch", metric, "kind", "MB", "step", "created"),
        [
            [
                manifest.name,
                ", ".join(words(manifest)),
                str(manifest.epoch),
                f"{manifest.metrics[metric]:.5g}" if metric in manifest.metrics else "",
                manifest.kind,
                f"{manifest.size / 1e6:.1f}",
                str(manifest.step),
                manifest.created.isoformat(timespec="seconds"),
            ]
            for manifest in manifests
        ],
        rest="All columns: --json, or into a file.",
    )


@app.command()
def inspect(
    run_id: str = _SOURCE, checkpoint: str = typer.Option("latest", "--checkpoint", help=_WHICH), as_json: bool = JSON
) -> None:
    """Show a checkpoint's parts, metrics, versions and damage."""
    from mltrain.run.checkpoints import open_checkpoints

    found = open_checkpoints(run_id)
    manifest = found.first(checkpoint)
    with progress("looking", in_bytes=True) as advance:
        found.store.watch(arrived_of(advance))
        problems = found.store.problems(manifest)
    parts = _parts(manifest)
    if as_json:
        facts = {
            **_facts(manifest),
            "run_id": found.store.run_id,
            "parent": manifest.parent.name if manifest.parent else None,
            "parts": parts,
            "files": {name: entry.model_dump() for name, entry in manifest.files.items()},
            "versions": manifest.versions,
            "code": manifest.code,
            "data": manifest.data,
            "pending": len(manifest.pending),
            "problems": [str(problem) for problem in problems],
        }
        print(json.dumps(facts, indent=1))
        sys.exit(3 if problems else 0)
    from mltrain.cli.tables import table

    print(f"{manifest.title} ({manifest.name}) of {found.store.title}: epoch {manifest.epoch}, step {manifest.step}")
    print(f"Written {manifest.created.isoformat(timespec='seconds')} after {manifest.parent or 'nothing'}")
    print(
        "Intact: every file has the SHA-256 that was committed."
        if not problems
        else f"DAMAGED: {'; '.join(map(str, problems))}"
    )
    table("Parts", ("part", "tensors", "numbers", "MB"), [[*map(str, row.values())] for row in parts])
    table("Files", ("file", "bytes", "sha256"), [[n, str(e.size), e.sha256[:16]] for n, e in manifest.files.items()])
    table("Metrics", ("metric", "value"), [[name, f"{value:.6g}"] for name, value in manifest.metrics.items()])
    origin = {**manifest.versions, **manifest.code, **manifest.data}
    table("Origin", ("what", "value"), [[name, value] for name, value in origin.items()])
    sys.exit(3 if problems else 0)


@app.command()
def verify(run_id: str = _SOURCE, as_json: bool = JSON) -> None:
    """Compare every file of every checkpoint with its digest.

    Lists damaged, uncommitted and temporary files.
    """
    from mltrain.checkpoint.manifest import UNTRACKED, CheckpointId
    from mltrain.errors import DamagedCheckpoint
    from mltrain.run.checkpoints import open_checkpoints

    store, intact, wrong = open_checkpoints(run_id).store, [], {}

    def damaged(identity: CheckpointId, error: DamagedCheckpoint) -> None:
        wrong[identity.name] = [str(error)]

    with progress("looking", in_bytes=True) as advance:
        survey = store.survey(damaged=damaged)
        store.watch(arrived_of(advance, sum(manifest.size for manifest in survey.manifests)))
        for manifest in survey.manifests:
            problems = [str(problem) for problem in store.problems(manifest)]
            if problems:
                wrong[manifest.name] = problems
            else:
                intact.append(manifest.name)
    uncommitted, litter = [identity.name for identity in survey.uncommitted], store.artifacts.unfinished()
    if as_json:
        print(json.dumps({"intact": intact, "damaged": wrong, "uncommitted": uncommitted, "litter": litter}, indent=1))
    else:
        for name in intact:
            print(f"intact       {name}")
        for name, problems in wrong.items():
            for problem in problems:
                print(f"DAMAGED      {name}: {problem}")
        for name in uncommitted:
            print(f"uncommitted  {name}: no manifest; it is being written, or its process died")
        for name in litter:
            print(f"temporary    {name}")
        print(
            f"{len(intact)} intact, {len(wrong)} damaged, {len(uncommitted)} uncommitted, {len(litter)} temporary files."
        )
        if uncommitted or litter:
            print(
                "The next save to the folder removes uncommitted and temporary files."
                if store.run_id == UNTRACKED
                else f"Remove uncommitted and temporary files with: mltrain prune {store.run_id}"
            )
    sys.exit(3 if wrong else 0)


@app.command()
def pin(
    run_id: str = _RUN,
    checkpoint: str = typer.Option(..., "--checkpoint", help=_WHICH),
    reason: str = typer.Option("", "--reason", help="Why the checkpoint must stay."),
) -> None:
    """Protect a checkpoint from every retention policy."""
    from mltrain.run.checkpoints import open_checkpoints
    from mltrain.tracking.client import connect
    from mltrain.tracking.tags import PIN_PREFIX

    server = connect()
    found = open_checkpoints(run_id, server)
    manifest = found.first(checkpoint)
    server.once.set_tag(found.store.run_id, f"{PIN_PREFIX}{manifest.name}", reason or "pinned by hand")
    print(f"{manifest.title} ({manifest.name}) is pinned.")


@app.command()
def unpin(run_id: str = _RUN, checkpoint: str = typer.Option(..., "--checkpoint", help=_WHICH)) -> None:
    """Remove the pin of a checkpoint; retention applies again."""
    from mltrain.errors import NoCheckpoint
    from mltrain.run.checkpoints import open_checkpoints
    from mltrain.tracking.client import connect
    from mltrain.tracking.tags import PIN_PREFIX

    server = connect()
    found = open_checkpoints(run_id, server)
    manifest = found.first(checkpoint)
    if manifest.id not in found.notes.context.pins:
        pinned = ", ".join(identity.name for identity in found.notes.context.pins) or "none"
        raise NoCheckpoint(f"{manifest.name} is not pinned. Pinned: {pinned}.")
    server.once.delete_tag(found.store.run_id, f"{PIN_PREFIX}{manifest.name}")
    print(f"{manifest.title} ({manifest.name}) is no longer pinned.")


def _facts(manifest: Any) -> dict[str, Any]:
    return {
        "checkpoint": manifest.name,
        "kind": manifest.kind,
        "epoch": manifest.epoch,
        "step": manifest.step,
        "attempt": manifest.id.attempt,
        "bytes": manifest.size,
        "created": manifest.created.isoformat(timespec="seconds"),
        "metrics": dict(manifest.metrics),
    }


def _parts(manifest: Any) -> list[dict[str, Any]]:
    rows = []
    for part in manifest.parts:
        tensors = [entry for name, entry in manifest.tensors.items() if name.split(".")[0] == part]
        numbers = sum(math.prod(entry.shape) for entry in tensors)
        size = sum(math.prod(entry.shape) * _width(entry.dtype) for entry in tensors)
        rows.append({"part": part, "tensors": len(tensors), "numbers": numbers, "megabytes": round(size / 1e6, 3)})
    return rows


def _width(dtype: str) -> int:
    digits = "".join(character for character in dtype.split("_")[0] if character.isdigit())
    return max(1, int(digits) // 8) if digits else 1
