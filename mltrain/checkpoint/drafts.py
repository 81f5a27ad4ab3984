"""The draft of a manifest, made before a checkpoint is written: step, epoch, parent and line; and the save that makes it."""

import logging
import math
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mltrain.checkpoint.committer import Committer
from mltrain.checkpoint.host_memory import HostBuffers
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
from mltrain.checkpoint.snapshot import snapshot
from mltrain.errors import UsageError, nearest
from mltrain.provenance import fingerprint

log = logging.getLogger(__name__)

_REMEMBERED = 8


@dataclass(frozen=True)
class Count:
    """How far the training is at a save.

    Attributes:
        step: optimizer steps done. If ``None``, the epoch decides, or the step before.
        epoch: epochs done. If ``None``, that of the checkpoint before.
    """

    step: int | None
    epoch: int | None

    @classmethod
    def of(cls, state: Mapping[str, Any], step: Any, epoch: Any) -> "Count":
        """Return what the caller counts by: the given numbers, or else those in the state.

        Raises:
            UsageError: a number is not a whole number that a checkpoint can have.
        """
        return cls(
            _count("step", step) if step is not None else _counter(state, "step", "global_step"),
            _count("epoch", epoch) if epoch is not None else _counter(state, "epoch"),
        )

    @property
    def key(self) -> tuple[str, int] | None:
        """What the caller counts by and the number, if the caller counts."""
        if self.step is not None:
            return "step", self.step
        return ("epoch", self.epoch) if self.epoch is not None else None


class Drafts:
    """Drafts the checkpoints that one process saves, each a continuation of the one before, and has them committed.

    Args:
        run: that the checkpoints belong to.
        reader: of the run's checkpoints.
        committer: of the drafts.
        expected: checks the metrics of each save.
    """

    def __init__(self, run: Run, reader: CheckpointReader, committer: Committer, expected: "ExpectedMetrics") -> None:
        self._run = run
        self._reader = reader
        self._committer = committer
        self._expected = expected
        self.buffers = HostBuffers()
        self._versions = fingerprint.versions()
        self._saved: list[tuple[Manifest, Count]] = []  # the last few of the present line
        self._steps: set[int] = set()  # those that this attempt has saved
        self._unread: Manifest | None = None
        self._looked = False
        self.origin: Manifest | None = None
        """The checkpoint that the line continues from: the loaded one, else the newest of an earlier attempt."""

    def continue_from(self, manifest: Manifest) -> None:
        """Let the next draft continue from a checkpoint."""
        self.origin, self._saved = manifest, []

    def line(self) -> list[Manifest]:
        """Return the committed checkpoints of the line that the next draft continues, the newest first."""
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
        """Do not look for a checkpoint to continue from: the caller found none."""
        self._looked = True

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
        """Draft a checkpoint, copy the state, and commit it in the background; see :meth:`mltrain.CheckpointManager.save`."""
        refuse_names(extra or {})
        by_hand = extra is None and not best  # a trainer, which adds files, knows itself which epochs it evaluates
        same = self._same(count, kind)
        if same is None:
            self._committer.make_way()
            same = self._same(count, kind)  # now that it is known whether the one before could be kept
        if same is not None:
            if by_hand:
                self._expected.check_finite(metrics)
            self._committer.declare(same, metrics, best=best)
            return same.id
        draft = self._draft(state, count, kind, metrics, data, best=best)
        if by_hand:
            self._expected.check(metrics)
        self._committer.commit(snapshot(state, self.buffers), draft, extra or {})
        self._saved = [*self._saved[-_REMEMBERED:], (draft, count)]
        self._steps.add(draft.step)
        return draft.id

    def _same(self, count: Count, kind: Kind) -> Manifest | None:
        """Return the newest checkpoint of this line if it has this very count."""
        while self._saved and self._committer.lost(self._saved[-1][0].id):
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
        """Draft the manifest of a state, without its files; where the state lies before saved ones, in a new attempt."""
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
        """Return the checkpoint that the first save continues from: the loaded one, else the newest of the run."""
        if self.origin is None and not self._looked and self._run.ordinal > 1:
            # An earlier attempt may have saved some. Not to look would abandon them all.
            self._unread = self._reader.newest()
            self._looked = True
        if self.origin is None and self._unread is not None:
            _refuse_going_back(count, self._unread, least=1, unread=True)
            self.origin = self._unread
        return self.origin

    def _was_beyond(self, step: int) -> bool:
        """Whether this attempt has saved this step or a later one already."""
        attempt = self._run.ordinal
        return any(
            saved >= step and not self._committer.lost(CheckpointId(attempt=attempt, step=saved))
            for saved in self._steps
        )


class ExpectedMetrics:
    """Warns once of each deciding metric that a save lacks, or whose value is not finite.

    Args:
        wanted: metrics that somebody asked for; one that a save lacks is warned of.
        deciding: metrics that decide what is best or kept, if they are measured.
    """

    @classmethod
    def of(cls, settings: Settings) -> "ExpectedMetrics":
        """Return those that a policy and the best metric need; the default metric may be absent, nobody asked for it."""
        wanted = {settings.metric} - {DEFAULT_METRIC}
        return cls(metrics_of(settings.policy) | wanted, {settings.metric})

    def __init__(self, wanted: Collection[str], deciding: Collection[str]) -> None:
        self._wanted = set(wanted)
        self._deciding = {*wanted, *deciding}

    def check(self, metrics: Mapping[str, float]) -> None:
        """Log a warning about those that are missing or not finite; without any metric nothing is expected."""
        for name in sorted(self._wanted - metrics.keys() if metrics else ()):
            self._wanted.remove(name)
            log.warning(
                "The metric %r, which decides what is best or kept, is not among those that were saved: %s.%s",
                name,
                f"{', '.join(metrics)}"[:500],
                nearest(name, metrics),
            )
        self.check_finite(metrics)

    def check_finite(self, metrics: Mapping[str, float]) -> None:
        """Log a warning about those that are not finite."""
        for name in sorted(self._deciding & metrics.keys()):
            if not math.isfinite(metrics[name]):
                self._deciding.remove(name)
                log.warning(
                    "The metric %r, which decides what is best or kept, is %s. Only finite values decide.",
                    name,
                    metrics[name],
                )


def _refuse_going_back(count: Count, before: Manifest, *, least: int = 0, unread: bool = False) -> None:
    """Refuse a step, or an epoch that is counted by, that is not beyond a checkpoint by at least so many."""
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
    """Return the first of these entries of a state that is a whole number: Python's, NumPy's or a tensor's."""
    for name in names:
        value = state.get(name)
        if isinstance(value, bool):
            continue
        try:
            operator.index(value)  # type: ignore[arg-type] # whether it is one is the question
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
        # Python refuses to spell numbers of thousands of digits.
        given = f"{value!r:.80}" if number.bit_length() < 1024 else f"a number of {number.bit_length()} bits"
        raise UsageError(f"{name}: {given} cannot be saved; a whole number from 0 to {LARGEST_COUNT} was expected.")
    return number
