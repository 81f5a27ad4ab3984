"""Finds and loads verified checkpoints. Writes nothing."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from mltrain.checkpoint import retention
from mltrain.checkpoint.manifest import CheckpointId, Manifest, current_line, newest
from mltrain.checkpoint.notes import Notes
from mltrain.checkpoint.retention import Context
from mltrain.checkpoint.store import PARAMS, CheckpointStore, Damaged, warn_damaged
from mltrain.errors import DamagedCheckpoint, NoCheckpoint, UsageError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

R = TypeVar("R")


class CheckpointReader:
    """The checkpoints of one run, read-only.

    Args:
        store: holds the checkpoints.
        context: defines which checkpoint is best.
        damaged: called with each damaged checkpoint.
    """

    def __init__(self, store: CheckpointStore, context: Context, damaged: Damaged = warn_damaged) -> None:
        self.store = store
        self.notes = Notes.read(store.artifacts, context)
        self._damaged = damaged

    def all(self) -> list[Manifest]:
        """Return all committed checkpoints, oldest first.

        Abandoned lines are included.
        """
        committed = self.store.manifests(damaged=self._damaged)
        newest = max((manifest.id.order for manifest in committed), default=(0, 0))
        # Uploads are in order, so a staged checkpoint older than the newest commit was uploaded or superseded.
        waiting = [one for one in self.store.staged() if one.id.order > newest and self.store.is_whole(one)]
        return self.notes.over(committed + sorted(waiting, key=lambda manifest: manifest.id.order))

    def matching(self, which: str) -> list[Manifest]:
        """Return the checkpoints that a selector matches; see :func:`matching`."""
        return matching(self.all(), which, self.notes.context)

    def newest(self) -> Manifest | None:
        """Return the checkpoint that ``latest`` selects, or ``None``.

        Reads no manifest of an older checkpoint.
        """
        staged = [one for one in self.store.staged() if self.store.is_whole(one)]
        for identity in self.store.names():
            try:
                committed = self.store.manifest(identity)
            except DamagedCheckpoint as error:
                self._damaged(identity, error)
                continue
            if committed is not None:
                staged = [*(one for one in staged if one.id.order > identity.order), committed]
                break
        found = newest(staged)
        return next(iter(self.notes.over([found]))) if found is not None else None

    def choices(self, which: str) -> Iterator[Manifest]:
        """Yield the checkpoints of :meth:`matching` lazily.

        The older matches of ``latest`` are read only when they are requested.
        """
        if which != "latest":
            yield from self.matching(which)
            return
        first = self.newest()
        if first is not None:
            yield first
            yield from (manifest for manifest in self.matching(which) if manifest.id != first.id)

    def load(self, which: str = "latest", device: "torch.device | None" = None) -> tuple[Manifest, dict[str, Any]]:
        """Load a checkpoint, verified.

        If the newest match of ``latest`` or ``best`` is damaged, the next match is loaded.

        Raises:
            NoCheckpoint: no checkpoint matches (the message lists the run's checkpoints), or every match is damaged.
        """
        found = self.find(which, device)
        if found is None:
            raise NoCheckpoint(self.no_match_message(which))
        return found

    def find(
        self, which: str = "latest", device: "torch.device | None" = None
    ) -> tuple[Manifest, dict[str, Any]] | None:
        """Load as :meth:`load`, or return ``None`` without a match."""
        choices = self.choices(which)
        first = next(choices, None)
        if first is None:
            return None
        return first_usable(
            self.store, chain([first], choices), lambda one: self.store.load(one, device), self._damaged
        )

    def load_configured(
        self,
        which: str = "latest",
        read: "Callable[[CheckpointStore, Manifest], Configured] | None" = None,
    ) -> "tuple[Manifest, Configured]":
        """Load a checkpoint with its configuration, both verified.

        See :meth:`load`. A checkpoint without a configuration is skipped unless it was imported.

        Args:
            which: see :meth:`load`.
            read: reads a checkpoint, verified. If ``None``, :func:`configured` does.

        Raises:
            NoCheckpoint: no checkpoint matches, or no match is intact with a configuration.
        """
        passed_over = 0

        def usable() -> Iterator[Manifest]:
            nonlocal passed_over
            for manifest in self.choices(which):
                if PARAMS in manifest.files or manifest.kind == "imported":
                    yield manifest
                else:
                    passed_over += 1
                    log.warning("Checkpoint %s has no %s, so mltrain train did not write it.", manifest.name, PARAMS)

        choices = usable()
        first = next(choices, None)
        if first is None and not passed_over:
            raise NoCheckpoint(self.no_match_message(which))
        if first is None:
            raise NoCheckpoint(
                f"None of the {passed_over} checkpoints of {self.store.title} has a configuration. Expected "
                f"{PARAMS} beside the state, as mltrain train writes it. Try: resume with the loop that wrote them."
            )
        return first_usable(self.store, chain([first], choices), partial(read or configured, self.store), self._damaged)

    def first(self, which: str) -> Manifest:
        """Return the first match's manifest, without verifying its files.

        Raises:
            NoCheckpoint: no checkpoint matches; the message lists the run's checkpoints.
        """
        candidates = self.matching(which)
        if not candidates:
            raise NoCheckpoint(self.no_match_message(which))
        return candidates[0]

    def no_match_message(self, which: str) -> str:
        """Return the message for a selector without a match.

        It lists the checkpoints that exist.
        """
        manifests = self.all()
        known = ", ".join(f"{m.title} ({m.name})" for m in manifests[-20:]) or "none"
        return f"{self.store.title[0].upper()}{self.store.title[1:]} has no checkpoint {which!r}. Existing checkpoints: {known}."


def matching(manifests: Sequence[Manifest], which: str, context: Context) -> list[Manifest]:
    """Return the checkpoints that a selector matches, best match first.

    ``latest``, ``best`` and ``interrupted`` search the current line, ``epoch:N`` and ``step:N`` prefer it, and a name also
    finds abandoned checkpoints.

    Raises:
        UsageError: the selector has none of these forms.
    """
    which = str(which)  # an identity is written as its name
    line = current_line(manifests)[::-1]
    if which == "latest":
        return line
    if which == "best":
        return retention.ranked(line, context)
    if which == "interrupted":
        return [manifest for manifest in line if manifest.kind == "interrupted"]
    if CheckpointId.parse(which) is not None:
        return [manifest for manifest in manifests if manifest.name == which]
    word, _, number = which.partition(":")
    if word in ("epoch", "step") and number.isdecimal():
        newest_first = line + [m for m in reversed(manifests) if m not in line]
        if word == "step":
            return [manifest for manifest in newest_first if manifest.step == int(number)]
        return [m for m in newest_first if m.kind in ("epoch", "imported") and m.epoch == int(number)]
    raise UsageError(
        f"{which!r:.80} does not name a checkpoint. Expected latest, best, interrupted, epoch:N, step:N or a name such as "
        "step-000000420-a01."
    )


Configured = tuple[dict[str, Any], Mapping[str, Any] | None]
"""The parts of a checkpoint and its configuration."""


def configured(
    store: CheckpointStore, manifest: Manifest, absent: "Mapping[str, torch.Tensor] | None" = None
) -> Configured:
    """Return a checkpoint's parts and configuration, both verified.

    The configuration is ``None`` if the checkpoint was saved without one.

    Args:
        store: holds the checkpoint.
        manifest: of the checkpoint.
        absent: a replacement for each sharded tensor. If ``None``, sharded tensors are reassembled.

    Raises:
        DamagedCheckpoint: it differs from its commit, or its configuration is not a mapping.
    """
    from mltrain.checkpoint.codec import decode  # imports torch, which takes seconds; listing checkpoints does without

    if absent is None:
        return store.load(manifest), configuration(store, manifest)
    return decode(store.fetch_unsharded(manifest), absent=absent), configuration(store, manifest)


def configuration(store: CheckpointStore, manifest: Manifest) -> Mapping[str, Any] | None:
    """Return a checkpoint's configuration, verified, without reading its weights.

    Returns ``None`` if it was saved without a configuration.

    Raises:
        DamagedCheckpoint: it differs from its commit.
    """
    content = store.fetch(manifest, only=PARAMS.__eq__).get(PARAMS)
    try:
        params = json.loads(content) if content is not None else None
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{PARAMS} of {manifest.name} is not valid JSON: {error}") from None
    if not isinstance(params, Mapping | None):
        raise DamagedCheckpoint(f"{PARAMS} of {manifest.name} holds a {type(params).__name__}. Expected a mapping.")
    return params


def first_usable(
    store: CheckpointStore,
    candidates: Iterable[Manifest],
    read: Callable[[Manifest], R],
    damaged: Damaged = warn_damaged,
) -> tuple[Manifest, R]:
    """Return the first readable candidate and its content.

    Each damaged candidate is reported.

    Args:
        store: holds the candidates.
        candidates: the best match first.
        read: reads the content that the caller wants, verified.
        damaged: called with each damaged candidate.

    Raises:
        NoCheckpoint: every candidate is damaged.
    """
    tried = 0
    for manifest in candidates:
        tried += 1
        try:
            return manifest, read(manifest)
        except DamagedCheckpoint as error:
            damaged(manifest.id, error)
    raise NoCheckpoint(f"None of the {tried} matching checkpoints of {store.title} is usable. {store.remedy}")
