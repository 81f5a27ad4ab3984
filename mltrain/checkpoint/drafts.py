"""Drafts manifests (without files) before checkpoints are written, and saves."""

import logging
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mltrain.checkpoint.committer import Committer
from mltrain.checkpoint.manifest import (
    LARGEST_COUNT,
    CheckpointId,
    Kind,
    Manifest,
    ancestry_after,
    line_of,
    newest,
    now,
    refuse_names,
)
from mltrain.checkpoint.ports import Run
from mltrain.checkpoint.reader import CheckpointReader
from mltrain.checkpoint.retention import metrics_of
from mltrain.checkpoint.settings import DEFAULT_METRIC, Settings
from mltrain.checkpoint.snapshot import HostBuffers, snapshot
from mltrain.errors import UsageError, nearest
from mltrain.provenance import fingerprint

log = logging.getLogger(__name__)

_REMEMBERED = 8


@dataclass(frozen=True)
class Count:
    """The step and epoch counters at a save.

    Attributes:
        step: optimizer steps done. If ``None``, the epoch serves, or one more than the previous step.
        epoch: epochs done. If ``None``, the epoch of the previous checkpoint applies.
    """

    step: int | None
    epoch: int | None

    @classmethod
    def of(cls, state: Mapping[str, Any], step: Any, epoch: Any) -> "Count":
        """Return the given counters, or else those in the state.

        Raises:
            UsageError: a given counter is not a whole number in the allowed range.
        """
        return cls(
            _count("step", step) if step is not None else _counter(state, "step", "global_step"),
            _count("epoch", epoch) if epoch is not None else _counter(state, "epoch"),
        )

    @property
    def key(self) -> tuple[str, int] | None:
        """The caller's counter and its value. ``None`` without step and epoch."""
        if self.step is not None:
            return "step", self.step
        return ("epoch", self.epoch) if self.epoch is not None else None


class Drafts:
    """Drafts one process's checkpoints in order, and commits them.

    Args:
        run: owns the checkpoints.
        reader: of the run's checkpoints.
        committer: commits the drafts.
        expected: checks the metrics of each save.
    """

    def __init__(self, run: Run, reader: CheckpointReader, committer: Committer, expected: "ExpectedMetrics") -> None:
        self._run = run
        self._reader = reader
        self._committer = committer
        self._expected = expected
        self.buffers = HostBuffers()
        self._versions = fingerprint.versions()
        self._saved: list[tuple[Manifest, Count]] = []  # the last few on the current line
        self._steps: set[int] = set()  # saved by this attempt
        self._not_loaded: Manifest | None = None
        self._searched = False
        self.origin: Manifest | None = None
        """The checkpoint that the line continues from: the loaded one, or else the newest of an earlier attempt."""

    def continue_from(self, manifest: Manifest) -> None:
        """Make the next draft continue from a checkpoint.

        The run records it with the attempt's first draft. After that, a draft that goes back begins the next attempt.
        """
        self.origin, self._saved = manifest, []

    def line(self) -> list[Manifest]:
        """Return the current line's committed checkpoints, newest first."""
        if self.origin is None:
            return self._reader.matching("latest")
        manifests = self._reader.all()
        mine = (
            one
            for one in manifests
            if one.id.attempt == self._run.ordinal and one.ancestry == ancestry_after(self.origin)
        )
        head = newest(mine) if self._saved else None
        return line_of(head or self.origin, manifests)[::-1]

    def begin_afresh(self) -> None:
        """Skip the search for a checkpoint to continue from."""
        self._searched = True

    def save(
        self,
        state: Mapping[str, Any],
        count: Count,
        kind: Kind,
        metrics: Mapping[str, float],
        *,
        best: bool,
        extra: Mapping[str, bytes] | None,
        data: Mapping[str, str],
    ) -> CheckpointId:
        """Snapshot and commit a state; see :meth:`mltrain.CheckpointManager.save`."""
        refuse_names(extra or {})
        by_hand = extra is None and not best  # a trainer adds files, and knows which epochs it evaluates
        same = self._same(count, kind)
        if same is None:
            self._committer.make_way()
            same = self._same(count, kind)  # the previous save may have been given up meanwhile
        if same is not None:
            if by_hand:
                self._expected.check_finite(metrics)
            self._committer.declare(same, metrics, best=best)
            return same.id
        draft = self._draft(state, count, kind, metrics, data, best=best)
        if by_hand:
            self._expected.check(metrics)
        copy = snapshot(state, self.buffers)
        if not self._steps:  # and after all that refuses the state
            self._run.record_origin(draft.parent)
        self._committer.commit(copy, draft, extra or {})
        self._saved = [*self._saved[-_REMEMBERED:], (draft, count)]
        self._steps.add(draft.step)
        return draft.id

    def _same(self, count: Count, kind: Kind) -> Manifest | None:
        """Return the newest checkpoint if it has the same counter."""
        while self._saved and self._saved[-1][0].id in self._committer.lost:
            self._saved.pop()
        if not self._saved:
            return None
        newest, before = self._saved[-1]
        counted_again = count.key is not None and count.key == before.key and kind != "interrupted"
        return newest if counted_again or count.step == newest.step else None

    def _draft(
        self,
        state: Mapping[str, Any],
        count: Count,
        kind: Kind,
        metrics: Mapping[str, float],
        data: Mapping[str, str],
        *,
        best: bool,
    ) -> Manifest:
        """Return a state's manifest without files; going back begins an attempt."""
        before = self._saved[-1][0] if self._saved else self._continued(count)
        if before is not None:
            _refuse_going_back(count, before)
        last_step = before.step if before is not None else 0
        step = count.step
        if step is None:
            step = count.epoch if count.epoch is not None and count.epoch > last_step else last_step + 1
        if self._was_beyond(step):
            self._run.begin_attempt(before.id if before is not None else None)
            self._steps.clear()
        try:
            return Manifest(
                run_id=self._run.id,
                id=CheckpointId(attempt=self._run.ordinal, step=step),
                kind=kind,
                epoch=count.epoch if count.epoch is not None else (before.epoch if before is not None else 0),
                parent=before.id if before is not None else None,
                ancestry=ancestry_after(self.origin),
                metrics=dict(metrics),
                best=best,
                parts=tuple(str(name) for name in state),
                files={},
                created=now(),
                versions=self._versions,
                code=dict(self._run.code),
                data=dict(data),
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"{place}={first['input']!r:.80} cannot be saved: {first['msg']}.") from None

    def _continued(self, count: Count) -> Manifest | None:
        """Return the loaded checkpoint, or else the run's newest."""
        if self.origin is None and not self._searched and self._run.ordinal > 1:
            # Without this search, the checkpoints of earlier attempts would be abandoned.
            self._not_loaded = self._reader.newest()
            self._searched = True
        if self.origin is None and self._not_loaded is not None:
            _refuse_going_back(count, self._not_loaded, least=1, unread=True)
            self.continue_from(self._not_loaded)
        return self.origin

    def _was_beyond(self, step: int) -> bool:
        """Whether this attempt has saved this or a later step."""
        attempt = self._run.ordinal
        return any(
            saved >= step and CheckpointId(attempt=attempt, step=saved) not in self._committer.lost
            for saved in self._steps
        )


class ExpectedMetrics:
    """Warns once for each missing or non-finite deciding metric.

    Args:
        settings: name the metrics that decide which checkpoint is best or kept; the default one may be missing.
    """

    def __init__(self, settings: Settings) -> None:
        self._deciding = {*metrics_of(settings.policy), settings.metric}
        self._wanted = {*metrics_of(settings.policy), *({settings.metric} - {DEFAULT_METRIC})}

    def check(self, metrics: Mapping[str, float]) -> None:
        """Warn about missing or non-finite metrics, if there are any."""
        for name in sorted(self._wanted - metrics.keys() if metrics else ()):
            self._wanted.remove(name)
            log.warning(
                "The metric %r, which decides which checkpoint is best or kept, is missing. The save has: %s.%s",
                name,
                f"{', '.join(metrics)}"[:500],
                nearest(name, metrics),
            )
        self.check_finite(metrics)

    def check_finite(self, metrics: Mapping[str, float]) -> None:
        """Warn about metrics that are not finite."""
        for name in sorted(self._deciding & metrics.keys()):
            if not math.isfinite(metrics[name]):
                self._deciding.remove(name)
                log.warning(
                    "The metric %r, which decides which checkpoint is best or kept, is %s. Only finite values count.",
                    name,
                    metrics[name],
                )


def _refuse_going_back(count: Count, before: Manifest, *, least: int = 0, unread: bool = False) -> None:
    """Refuse a counter below the checkpoint's plus ``least``."""
    if count.key is None:
        return
    word, number = count.key
    newest = before.step if word == "step" else before.epoch
    if number < newest + least:
        raise UsageError(
            f"{word} {number} cannot be saved after {word} {newest} ({before.name}). Expected {word}s that grow over the whole "
            f"run, got {number}{' without a load' if unread else ''}; nothing was removed. Try: load_latest_checkpoint() before "
            f"the first save to continue, load('{word}:N') to go back, or {word}= with a number that never starts again."
        )


def _counter(state: Mapping[str, Any], *names: str) -> int | None:
    """Return the first whole number (Python, NumPy, tensor) among state entries."""
    for name in names:
        value = state.get(name)
        if isinstance(value, bool):
            continue
        try:
            operator.index(value)  # type: ignore[arg-type] # raises for other types
        except (TypeError, ValueError):
            continue
        return _count(name, value)
    return None


def _count(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except (TypeError, ValueError):
        number = -1
    if isinstance(value, bool) or not 0 <= number <= LARGEST_COUNT:
        # Python refuses to print numbers of thousands of digits.
        given = f"{value!r:.80}" if number.bit_length() < 1024 else f"a number of {number.bit_length()} bits"
        raise UsageError(f"{name}={given} cannot be saved. Expected a whole number from 0 to {LARGEST_COUNT}.")
    return number
