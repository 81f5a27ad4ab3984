"""Prunes the checkpoints of ended runs: first plans, then removes."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mltrain.checkpoint import retention
from mltrain.checkpoint.manifest import CheckpointId, Manifest, current_line, newest
from mltrain.checkpoint.policies import Best, Latest, parse
from mltrain.checkpoint.pruner import Removals, record_of
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import Policy, Removal, best_of
from mltrain.checkpoint.store import CheckpointStore
from mltrain.checkpoint.verified_files import Arrived
from mltrain.commands.checks import policy_of
from mltrain.config import Config
from mltrain.errors import (
    ConfigError,
    MltrainError,
    RunHeld,
    RunNotFound,
    StorageError,
    UsageError,
    nearest,
)
from mltrain.ownership.attempts import last_attempt, recorded_config
from mltrain.ownership.host_lock import lock_if_here
from mltrain.redaction import first_line
from mltrain.run.checkpoints import checkpoints_of
from mltrain.run.listing import LIVE, state
from mltrain.run.naming import full_id
from mltrain.store.artifacts import Artifacts
from mltrain.store.removal import DEAD_SECONDS
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.registry import MadeModel, in_use, made_models, remove_models
from mltrain.tracking.tags import REMOVED_TAG, RESUMED_FROM_TAG, RETENTION_TAG, STATUS_TAG, pins_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """Which checkpoints to keep across the runs of an experiment.

    Attributes:
        keep: the policy within a run. If ``None``, each run's own policy applies.
        best_runs: number of runs, ranked by their best checkpoints, to which the policy applies; the others keep only their
            best and newest checkpoint.
        only_best_after_days: runs that ended longer ago keep only their best and newest checkpoint.
    """

    keep: Policy | None = None
    best_runs: int | None = None
    only_best_after_days: float | None = None


@dataclass(frozen=True)
class RunPlan:
    """A run's planned removals, or why it is skipped.

    ``failure`` is the error of a run that could not be read.
    """

    run_id: str
    name: str
    removals: tuple[Removal, ...] = ()
    uncommitted: tuple[CheckpointId, ...] = ()
    litter: tuple[str, ...] = ()
    kept: Mapping[CheckpointId, str] = field(default_factory=dict)
    models: tuple[MadeModel, ...] = ()
    left_alone: str | None = None
    failure: MltrainError | None = None
    checkpoints: CheckpointReader | None = None

    @property
    def bytes(self) -> int:
        """Bytes that the removals free, without temporary files."""
        return sum(removal.manifest.size for removal in self.removals)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to remove."""
        return not (self.removals or self.uncommitted or self.litter)


def plan_run(server: TrackingClient, run_id: str, keep: Policy | None, arrived: Arrived | None = None) -> RunPlan:
    """Return what pruning removes from a run.

    Args:
        server: the tracking server.
        run_id: the run's id, or its first digits.
        keep: the policy. If ``None``, the run's own policy applies.
        arrived: called with each piece of the newest checkpoint, which is verified if others are to be removed. If ``None``,
            nothing is.

    Raises:
        RunHeld: the run is being trained, and prunes itself.
        RunNotFound, TrackingError, StorageError: the run cannot be read.
        ConfigError: no policy is given, and the run's own is unknown.
        UsageError: the given policy ranks by a metric that no checkpoint has.
    """
    run = server.run(full_id(server, run_id))
    if state(server, run) in LIVE:
        raise RunHeld(f"Run {run.info.run_id} is being trained and prunes itself. Prune it when it has ended.")
    return _planned(server, run, keep, arrived)


def plan_experiment(
    server: TrackingClient, experiment: str, rules: Rules, looked: Callable[[str, int], None] = lambda name, total: None
) -> list[RunPlan]:
    """Plan the pruning of an experiment's runs; skip live ones.

    Args:
        server: the tracking server.
        experiment: name of the experiment.
        rules: which checkpoints to keep.
        looked: called with the name of each run before it is examined, and the number of runs.

    Raises:
        RunNotFound: the experiment does not exist.
    """
    plans, runs = [], list(_runs(server, server.once.experiment_id(experiment)))
    chosen = _best_runs(server, runs, rules.best_runs) if rules.best_runs is not None else None
    for run in runs:
        run_id, name = run.info.run_id, run.info.run_name
        looked(name, len(runs))
        if state(server, run) in LIVE:
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
            plans.append(RunPlan(run_id, name, left_alone=first_line(error), failure=error))
    return plans


def carry_out(server: TrackingClient, plan: RunPlan) -> int:
    """Carry out and record a plan; return the bytes freed.

    Raises:
        StorageError: the store refuses a removal.
        RunHeld: another process has resumed the run in the meantime.
    """
    if plan.empty or plan.checkpoints is None:
        return 0
    store, removed = plan.checkpoints.store, []
    with lock_if_here(server, plan.run_id):  # keeps out a resume or sync on this host
        run = server.run(plan.run_id)
        if state(server, run) in LIVE:
            raise RunHeld(f"Run {plan.run_id} was resumed in the meantime. Nothing was removed.")
        pinned = pins_of(run)  # the plan may be old: planning many runs or a prompt takes time
        try:
            for removal in (one for one in plan.removals if one.manifest.name not in pinned):
                remove_models(server, plan.models, removal.manifest.name)
                store.remove(removal.manifest.id)
                removed.append(removal)
            for identity in plan.uncommitted:
                store.remove(identity)
            store.artifacts.remove_unfinished()
        finally:
            if removed:
                summary = Removals(store.artifacts).append([record_of(removal) for removal in removed])
                server.once.set_tag(plan.run_id, REMOVED_TAG, summary)
    return sum(removal.manifest.size for removal in removed)


def _planned(server: TrackingClient, run: Any, keep: Policy | None, arrived: Arrived | None = None) -> RunPlan:
    run_id, experiment_id = run.info.run_id, run.info.experiment_id
    checkpoints = checkpoints_of(server, run)
    store, context = checkpoints.store, checkpoints.notes.context
    if arrived is not None:
        store.watch(arrived)
    survey = store.survey()
    manifests, litter = tuple(checkpoints.notes.over(survey.manifests)), tuple(store.artifacts.unfinished(DEAD_SECONDS))
    resumed = _resumed_from(run, manifests)
    kept = retention.protected(manifests, context, resumed_from=resumed, in_use=())
    if keep is not None:
        _refuse_unmeasured(keep, run_id, current_line(manifests))
    policy = (keep or _own_policy(run, store.artifacts)) if manifests else Latest(1)
    uncommitted = tuple(identity for identity in survey.uncommitted if identity not in kept)
    removals = retention.plan(manifests, policy, context, kept)
    models: tuple[MadeModel, ...] = ()
    if removals or uncommitted:  # only then, because this takes further requests
        models = tuple(made_models(server, run_id, experiment_id))
        used = [identity for name in in_use(server, run_id, models) if (identity := CheckpointId.parse(name))]
        kept = retention.protected(manifests, context, resumed_from=resumed, in_use=used)
        uncommitted = tuple(identity for identity in survey.uncommitted if identity not in kept)
    if removals:
        intact = _newest_intact(store, manifests)
        if intact is not None:
            kept.setdefault(intact, "the newest that is intact")
        removals = retention.plan(manifests, policy, context, kept)
    return RunPlan(
        run_id, run.info.run_name, tuple(removals), uncommitted, litter, kept, models, checkpoints=checkpoints
    )


def _refuse_unmeasured(policy: Policy, run_id: str, line: Sequence[Manifest]) -> None:
    """Refuse a policy that ranks by an unmeasured metric.

    Raises:
        UsageError: no checkpoint of the current line has a finite value, so the policy would remove what it should keep.
    """
    measured = {name for manifest in line for name, value in manifest.metrics.items() if math.isfinite(value)}
    for name in sorted(retention.metrics_of(policy) - measured if line else ()):
        raise UsageError(
            f"No checkpoint of run {run_id} has a finite value of {name!r}, which {policy} ranks by.{nearest(name, measured)} "
            f"Expected one of: {', '.join(sorted(measured)) or 'none was measured'}. Nothing was removed."
        )


def _newest_intact(store: CheckpointStore, manifests: Sequence[Manifest]) -> CheckpointId | None:
    """Return the newest intact checkpoint, which a resume would use.

    Every byte is verified, since the store may have changed after the training.
    """
    for manifest in reversed(current_line(manifests)):
        problems = store.problems(manifest)
        if not problems:
            return manifest.id
        log.warning("Checkpoint %s of run %s is damaged: %s", manifest.name, store.run_id, problems[0])
    return None


def _own_policy(run: Any, artifacts: Artifacts) -> Policy:
    """Return the policy that a run was trained with.

    Raises:
        ConfigError: the policy is unknown; a default could remove checkpoints that the user wants to keep.
    """
    spelled = run.data.tags.get(RETENTION_TAG)
    if spelled is None:
        try:
            config = recorded_config(artifacts)["config"]
        except RunNotFound:
            raise ConfigError(
                f"Run {run.info.run_id} has recorded no retention policy. Expected one. Try: --keep POLICY"
            ) from None
        known = {name: config[name] for name in ("retention", "checkpoint_mode", "max_to_keep") if name in config}
        return policy_of(Config.load(base=known))
    try:
        return parse(spelled)
    except ConfigError:
        raise ConfigError(
            f"Run {run.info.run_id} has recorded the retention policy {spelled!r:.200}, which is invalid here. "
            "Try: --keep POLICY"
        ) from None


def _resumed_from(run: Any, manifests: Sequence[Manifest]) -> CheckpointId | None:
    """Return the last attempt's origin until it commits."""
    name, newest_commit = run.data.tags.get(RESUMED_FROM_TAG), newest(manifests)
    if name is None or newest_commit is None or newest_commit.id.attempt >= last_attempt(run.data.params):
        return None
    return CheckpointId.parse(name)


def _runs(server: TrackingClient, experiment_id: str) -> Sequence[Any]:
    found = server.search_runs([experiment_id], "")
    return [run for run in found if STATUS_TAG in run.data.tags]


def _best_runs(server: TrackingClient, runs: Sequence[Any], count: int) -> set[str]:
    values: list[tuple[float, str]] = []
    for run in runs:
        try:
            checkpoints = checkpoints_of(server, run)
            context = checkpoints.notes.context
            best = best_of(current_line(checkpoints.all()), context)
        except (RunNotFound, StorageError) as error:  # its plan records the error as well
            log.warning("Run %s is skipped: %s", run.info.run_id, error)
            continue
        if best is not None and context.metric in best.metrics:
            sign = 1 if context.mode == "min" else -1
            values.append((sign * best.metrics[context.metric], run.info.run_id))
    return {run_id for _, run_id in sorted(values)[:count]}
