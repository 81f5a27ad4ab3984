"""``mltrain sync``, ``reap``, ``doctor`` and ``import``."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import typer

from mltrain.cli import app
from mltrain.cli.arguments import JSON, parse
from mltrain.cli.progress import progress
from mltrain.errors import counted
from mltrain.redaction import harmless


@app.command()
def sync(
    as_json: bool = JSON,
    address: str = typer.Option(
        None,
        "--from",
        help="Former address of this store, whose backlog is sent and whose runs are created, too.",
    ),
) -> None:
    """Send the backlog of this machine. Safe to repeat.

    Exits with 5 if something could not be sent. Lists the backlog of other tracking stores.
    """
    from mltrain.delivery.sync import sync as run_sync
    from mltrain.tracking.client import connect

    results = []
    for result in run_sync(connect(retry_seconds=10.0), address=address):
        results.append(result)
        if as_json:
            continue
        if result.sent or result.uploaded or result.dropped or (result.left and not result.address) or result.refused:
            print(
                f"{result.run_id}: {counted(result.sent, 'record')} sent, "
                f"{counted(len(result.uploaded), 'checkpoint')} uploaded, "
                f"{result.dropped} replaced by a later attempt, {result.left} still waiting, "
                f"{result.refused} refused by the tracking store",
                flush=True,
            )
        if result.said:
            print(f"{result.run_id}: {harmless(result.said)}", flush=True)
    failed = any(r.failed or (not r.address and (r.left or r.refused)) for r in results)
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=1))
        sys.exit(5 if failed else 0)
    for former in sorted({result.address for result in results if result.address}):
        print(
            f"If this tracking store was at {harmless(former)}, send the backlog for it with: mltrain sync --from {former}"
        )
    if not failed and not any(result.said for result in results):
        print("This machine has no backlog.")
    sys.exit(5 if failed else 0)


@app.command()
def reap(as_json: bool = JSON) -> None:
    """Mark runs whose process has died as KILLED."""
    from mltrain.ownership.reaper import reap as run_reap
    from mltrain.tracking.client import connect

    found = list(run_reap(connect(retry_seconds=10.0)))
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
        return
    for one in found:
        print(f"{one.run_id} ({harmless(one.name)}): {one.found}")
    closed = sum(one.found == "closed" for one in found)
    print(f"{closed} closed; resume any of them with: mltrain train --resume-run ID" if closed else "Nothing to close.")


@app.command()
def doctor(as_json: bool = JSON) -> None:
    """Check tracking server, artifact store, disks and clock."""
    from mltrain.commands.doctor import examine
    from mltrain.tracking.client import connect

    findings = []
    for finding in examine(connect()):
        findings.append(finding)
        if not as_json:
            print(f"{finding.state:<5} {finding.check:<15} {finding.detail}", flush=True)
    if as_json:
        facts = [{"what": one.check, "state": one.state, "said": one.detail} for one in findings]
        print(json.dumps(facts, indent=1))
    sys.exit(5 if any(finding.state == "bad" for finding in findings) else 0)


@app.command("import", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def import_(
    file: Path = typer.Argument(
        ...,
        metavar="FILE|ID[/PATH]",
        help="A .pth, .pt, .ckpt or .safetensors file, or a folder of shards; or the id of a run, optionally with /PATH.",
    ),
    arguments: list[str] = typer.Argument(
        None, metavar="[PROJECT] [key=value ...]", help="The project of the weights.", show_default=False
    ),
    experiment: str = typer.Option(None, "--experiment", help="The MLflow experiment of the new run."),
    as_json: bool = JSON,
) -> None:
    """Import another program's checkpoint as a new run.

    From a run, the newest checkpoint of Lightning's MLFlowLogger, MLflow's autologging or the transformers Trainer is
    imported. No code in it is executed. With a project, resume the new run with: mltrain train --resume-run ID. Without
    one: mltrain train PROJECT --resume-run ID
    """
    from mltrain.commands.import_checkpoint import import_file, import_run
    from mltrain.project import find
    from mltrain.run.naming import is_run_id
    from mltrain.tracking.client import connect

    word, overrides = parse(arguments or [])
    with progress(f"importing {file.name}"):
        project = find(word) if word else None
        if not file.exists() and is_run_id(file.parts[0] if file.parts else ""):
            report = import_run(file.as_posix(), connect(), project, overrides, experiment)
        else:
            report = import_file(file, connect(), project, overrides, experiment)
    if as_json:
        print(json.dumps(asdict(report), indent=1))
        return
    for line in report.taken:
        print(f"taken  {line}")
    for line in report.left:
        print(f"left   {line}")
    for name in report.fresh:
        print(f"fresh  {name}: not taken from the file; it keeps its initial state")
    print(f"run_id={report.run_id}")
    command = f"mltrain train {'' if word else 'PROJECT '}--resume-run {report.run_id}"
    print(f"{report.checkpoint} is the first checkpoint of the run. Continue with: {command}")
