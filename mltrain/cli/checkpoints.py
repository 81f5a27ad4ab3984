"""``mltrain checkpoints``: what a run has saved."""

import json

import typer


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("checkpoints")(checkpoints)


def checkpoints(
    run_id: str = typer.Argument(..., help="The id of the run."),
    as_json: bool = typer.Option(False, "--json", help="As JSON, for programs."),
) -> None:
    """List the checkpoints of a run: the newest last, abandoned lines marked."""
    from mltrain.checkpoint.lineage import current_line
    from mltrain.checkpoint.retention import best_of
    from mltrain.evaluate import reader

    found = reader(run_id)
    manifests = found.all()
    line = current_line(manifests)
    best, on_line = best_of(line, found.context), {manifest.id for manifest in line}
    said = {
        manifest.id: [
            word
            for word, true in (
                ("latest", bool(line) and manifest.id == line[-1].id),
                ("best", best is not None and manifest.id == best.id),
                ("pinned", manifest.id in found.context.pins),
                ("abandoned", manifest.id not in on_line),
            )
            if true
        ]
        for manifest in manifests
    }
    rows = [
        {
            "checkpoint": manifest.name,
            "kind": manifest.kind,
            "epoch": manifest.epoch,
            "step": manifest.step,
            "attempt": manifest.id.attempt,
            "bytes": manifest.size,
            "created": manifest.created.isoformat(timespec="seconds"),
            "is": said[manifest.id],
            "metrics": dict(manifest.metrics),
        }
        for manifest in manifests
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from mltrain.cli.tables import table

    metric = found.context.metric
    table(
        f"Checkpoints of {run_id}",
        ("checkpoint", "kind", "epoch", "step", metric, "MB", "created", "is"),
        [
            [
                manifest.name,
                manifest.kind,
                str(manifest.epoch),
                str(manifest.step),
                f"{manifest.metrics[metric]:.5g}" if metric in manifest.metrics else "",
                f"{manifest.size / 1e6:.1f}",
                manifest.created.isoformat(timespec="seconds"),
                ", ".join(said[manifest.id]),
            ]
            for manifest in manifests
        ],
    )
