"""``mltrain prune``: removes old checkpoints from the tracking store."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from mltrain.cli import app
from mltrain.cli.progress import arrived_of, progress
from mltrain.errors import RunHeld, StorageError, TrackingError, UsageError, counted

if TYPE_CHECKING:
    from mltrain.commands.prune import RunPlan
    from mltrain.tracking.client import TrackingClient


@app.command()
def prune(
    run_id: str = typer.Argument(None, metavar="ID", help="The id of the run; or give --experiment."),
    experiment: str = typer.Option(None, "--experiment", help="Prune all runs of this experiment."),
    keep: str = typer.Option(
        None, "--keep", metavar="EXPR", help="Such as 'Latest(3) | Best(2)'. Default: each run's own policy."
    ),
    best_runs: int = typer.Option(
        None, "--best-runs", min=0, help="Runs beyond the K best keep only their best and newest checkpoint."
    ),
    old_days: float = typer.Option(
        None,
        "--only-best-after-days",
        min=0,
        help="Runs that ended earlier keep only their best and newest checkpoint.",
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print what would be removed; change nothing."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON. Never asks, so it needs --dry-run or --yes."),
) -> None:
    """Remove old checkpoints, after listing them with the reasons."""
    from mltrain.checkpoint.policies import parse
    from mltrain.commands.prune import Rules, plan_experiment, plan_run
    from mltrain.tracking.client import connect

    if (run_id is None) == (experiment is None):
        raise UsageError("Expected a run or an experiment. Try: mltrain prune ID, or mltrain prune --experiment NAME")
    if as_json and not (dry_run or yes):
        raise UsageError("--json never asks for confirmation. Expected --dry-run or --yes with it.")
    policy, server = parse(keep) if keep is not None else None, connect()
    if experiment is not None:
        with progress("looking") as advance:
            plans = plan_experiment(
                server, experiment, Rules(policy, best_runs, old_days), lambda name, total: advance(name, 1, total)
            )
    else:
        with progress("looking", in_bytes=True) as advance:
            plans = [plan_run(server, run_id, policy, arrived_of(advance))]
    count = _print_plans(plans, as_json)
    failures = [plan.failure for plan in plans if plan.failure is not None]
    if failures and len(failures) == len(plans):
        sys.exit(failures[-1].exit_code)  # no run could be read
    if dry_run or count == 0:
        return
    if not yes and not typer.confirm("Remove these?"):
        print("Nothing was removed.")
        return
    sys.exit(_remove(server, plans, as_json))


def _print_plans(plans: "Sequence[RunPlan]", as_json: bool) -> int:
    """Print what would be removed; return how much that is."""
    count = sum(len(plan.removals) + len(plan.uncommitted) + len(plan.litter) for plan in plans)
    if as_json:
        print(json.dumps([_facts(plan) for plan in plans], indent=1))
        return count
    for plan in plans:
        _show(plan)
    total = sum(plan.bytes for plan in plans)
    print(f"In total {count} to remove, {total / 1e6:.1f} MB, in {counted(len(plans), 'run')}.")
    return count


def _remove(server: "TrackingClient", plans: "Sequence[RunPlan]", as_json: bool) -> int:
    """Carry out the plans; return the last error's exit code."""
    from mltrain.commands.prune import carry_out

    freed, code, refusals = 0, 0, []
    total = sum(not plan.empty for plan in plans)
    with progress("removing") as advance:
        for plan in plans:
            try:
                freed += carry_out(server, plan)
            except (RunHeld, StorageError, TrackingError) as error:
                code = error.exit_code
                refusals.append(f"Run {plan.run_id}: {error}")
            advance(plan.name, not plan.empty, total)
    for refusal in refusals:
        print(refusal, file=sys.stderr)
    if not as_json:
        print(f"Removed {freed / 1e6:.1f} MB. Each run's retention.jsonl records what was removed.")
    return code


def _show(plan: "RunPlan") -> None:
    print(f"Run {plan.run_id} ({plan.name}):")
    if plan.left_alone:
        print(f"  skipped: {plan.left_alone}")
        return
    for removal in plan.removals:
        print(f"  remove    {removal.manifest.name}  {removal.manifest.size / 1e6:8.1f} MB  {removal.rule}")
    for identity in plan.uncommitted:
        print(f"  remove    {identity.name}  has no manifest; its process died")
    for path in plan.litter:
        print(f"  remove    {path}  is left from an interrupted upload")
    for identity, reason in plan.kept.items():
        print(f"  keep      {identity.name}  {reason}")


def _facts(plan: "RunPlan") -> dict[str, Any]:
    return {
        "run_id": plan.run_id,
        "name": plan.name,
        "left_alone": plan.left_alone,
        "remove": [{"checkpoint": r.manifest.name, "bytes": r.manifest.size, "rule": r.rule} for r in plan.removals],
        "uncommitted": [identity.name for identity in plan.uncommitted],
        "litter": list(plan.litter),
        "keep": {identity.name: reason for identity, reason in plan.kept.items()},
        "bytes": plan.bytes,
    }
