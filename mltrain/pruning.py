"""Retention after training: of one run, or across the runs of an experiment. First a plan, then the deed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mltrain.checkpoint import retention
from mltrain.checkpoint.lineage import current_line, newest
from mltrain.checkpoint.manager import record_of
from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import Best, Latest, Policy, Removal, best_of
from mltrain.config import Config
from mltrain.errors import ConfigError, MltrainError, RunHeld, RunNotFound, StorageError
from mltrain.evaluate import reader
from mltrain.tracking.attempts import last_attempt, recorded_config
from mltrain.tracking.overview import state
from mltrain.tracking.records import REMOVED_TAG, append_removals
from mltrain.tracking.run import registered
from mltrain.tracking.server import Server
from mltrain.training import policy_of

log = logging.getLogger(__name__)

_LIVE = ("running", "running elsewhere")


@dataclass(frozen=True)
class Rules:
    """What stays, across the runs of an experiment.

    Attributes:
        keep: the policy within a run; none: the one that each run was trained with.
        best_runs: only so many runs, by their best checkpoints, keep what ``keep`` says; the others their best and newest.
        only_best_after_days: runs that ended longer ago keep their best and newest.
    """

    keep: Policy | None = None
    best_runs: int | None = None
    only_best_after_days: float | None = None


@dataclass(frozen=True)
class RunPlan:
    """What would go from one run, and why it is left alone if it is."""

    run_id: str
    name: str
    removals: tuple[Removal, ...] = ()
    uncommitted: tuple[CheckpointId, ...] = ()
    litter: tuple[str, ...] = ()
    kept: Mapping[CheckpointId, str] = field(default_factory=dict)
    left_alone: str | None = None
    checkpoints: CheckpointReader | None = None

    @property
    def bytes(self) -> int:
        """What the removals free, without litter."""
        return sum(removal.manifest.size for removal in self.removals)

    @property
    def empty(self) -> bool:
        """Whether nothing would go."""
        return not (self.removals or self.uncommitted or self.litter)


def plan_run(server: Server, run_id: str, keep: Policy | None) -> RunPlan:
    """Return what would go from a run.

    Raises:
        RunHeld: the run is being trained; it prunes itself.
        RunNotFound, TrackingError, StorageError: it cannot be read.
    """
    run = server.run(run_id)
    if state(run) in _LIVE:
        raise RunHeld(f"Run {run_id} is being trained and prunes itself; prune it when it has ended.")
    return _planned(server, run, keep)


def plan_experiment(server: Server, experiment: str, rules: Rules) -> list[RunPlan]:
    """Return what would go from each run of an experiment; live runs are left alone.

    Raises:
        RunNotFound: there is no such experiment.
    """
    found = server.call(server.client.get_experiment_by_name, experiment)
    if found is None:
        raise RunNotFound(f"There is no experiment {experiment!r}.")
    plans, runs = [], list(_runs(server, found.experiment_id))
    chosen = _best_runs(server, runs, rules.best_runs) if rules.best_runs is not None else None
    for run in runs:
        run_id, name = run.info.run_id, run.info.run_name
        if state(run) in _LIVE:
            plans.append(RunPlan(run_id, name, left_alone="it is being trained"))
            continue
        keep = rules.keep
        ended = datetime.fromtimestamp((run.info.end_time or run.info.start_time) / 1000, UTC)
        old = rules.only_best_after_days is not None and (
            (datetime.now(UTC) - ended).total_seconds() > 86400 * rules.only_best_after_days
        )
        if old or (chosen is not None and run_id not in chosen):
            keep = Latest(1) | Best(1)
        try:
            plans.append(_planned(server, run, keep))
        except MltrainError as error:
            plans.append(RunPlan(run_id, name, left_alone=str(error).splitlines()[0]))
    return plans


def carry_out(server: Server, plan: RunPlan) -> int:
    """Remove what a plan says, record it in the run, and return the bytes freed.

    Raises:
        StorageError: the store does not allow it.
        RunHeld: somebody resumed the run meanwhile.
    """
    if plan.empty or plan.checkpoints is None:
        return 0
    if state(server.run(plan.run_id)) in _LIVE:
        raise RunHeld(f"Run {plan.run_id} was resumed meanwhile; nothing was removed.")
    store, removed = plan.checkpoints.store, []
    try:
        for removal in plan.removals:
            store.remove(removal.manifest.id)
            removed.append(removal)
        for identity in plan.uncommitted:
            store.remove(identity)
        store.artifacts.remove_litter()
    finally:
        if removed:
            said = append_removals(store.artifacts, [record_of(removal) for removal in removed])
            server.call(server.client.set_tag, plan.run_id, REMOVED_TAG, said)
    return sum(removal.manifest.size for removal in removed)


def _planned(server: Server, run: Any, keep: Policy | None) -> RunPlan:
    checkpoints = reader(run.info.run_id, server)
    manifests = checkpoints.all()
    policy = keep or _own_policy(checkpoints)
    used = [identity for name in registered(server, run.info.run_id) if (identity := CheckpointId.parse(name))]
    resumed = _resumed_from(run, manifests)
    kept = retention.protected(manifests, checkpoints.context, resumed_from=resumed, in_use=used)
    damaged = set(checkpoints.store.names()) - {manifest.id for manifest in manifests}
    uncommitted = tuple(identity for identity in checkpoints.store.uncommitted() if identity in damaged)
    return RunPlan(
        run.info.run_id,
        run.info.run_name,
        tuple(retention.plan(manifests, policy, checkpoints.context, kept)),
        uncommitted,
        tuple(checkpoints.store.artifacts.litter()),
        kept,
        checkpoints=checkpoints,
    )


def _own_policy(checkpoints: CheckpointReader) -> Policy:
    try:
        config = recorded_config(checkpoints.store.artifacts)["config"]
        known = {name: config[name] for name in ("retention", "checkpoint_mode", "max_to_keep") if name in config}
        return policy_of(Config.load(base=known))
    except (RunNotFound, ConfigError, StorageError):
        return Latest(5) | Best(1)


def _resumed_from(run: Any, manifests: Sequence[Manifest]) -> CheckpointId | None:
    """Return where the last attempt began, as long as it has no commit of its own."""
    name, newest_commit = run.data.tags.get("mltrain.resumed_from"), newest(manifests)
    if name is None or newest_commit is None or newest_commit.id.attempt >= last_attempt(run.data.params):
        return None
    return CheckpointId.parse(name)


def _runs(server: Server, experiment_id: str) -> Sequence[Any]:
    found: list[Any] = []
    token: str | None = None
    while True:
        page = server.call(server.client.search_runs, [experiment_id], max_results=500, page_token=token)
        found.extend(run for run in page if "mltrain.status" in run.data.tags)
        token = page.token
        if not token:
            return found


def _best_runs(server: Server, runs: Sequence[Any], count: int) -> set[str]:
    values: list[tuple[float, str]] = []
    for run in runs:
        checkpoints = reader(run.info.run_id, server)
        context = checkpoints.context
        best = best_of(current_line(checkpoints.all()), context)
        if best is not None and context.metric in best.metrics:
            sign = 1 if context.mode == "min" else -1
            values.append((sign * best.metrics[context.metric], run.info.run_id))
    return {run_id for _, run_id in sorted(values)[:count]}
