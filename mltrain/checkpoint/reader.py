"""Reading the checkpoints of a run: which there are, what was declared of them, which one a word means, loading it verified.

It writes nothing.
"""

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
from mltrain.checkpoint.store import PARAMS, CheckpointStore, warn_damaged
from mltrain.errors import DamagedCheckpoint, NoCheckpoint, UsageError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

R = TypeVar("R")

Damaged = Callable[[CheckpointId, DamagedCheckpoint], None]


class CheckpointReader:
    """The checkpoints of one run, to be read.

    Args:
        store: where they are.
        context: what best means.
        damaged: called with each damaged checkpoint. If ``None``, each is logged as a warning.
    """

    def __init__(self, store: CheckpointStore, context: Context, damaged: Damaged | None = None) -> None:
        self.store = store
        self.notes = Notes.read(store.artifacts, context)
        self._damaged = damaged

    def all(self) -> list[Manifest]:
        """Return all committed checkpoints, oldest first, those of abandoned lines included."""
        committed = self.store.manifests(damaged=self._damaged)
        newest = max((manifest.id.order for manifest in committed), default=(0, 0))
        # Uploads are in order, so what is staged and older than the newest commit is there already, or was superseded.
        waiting = [one for one in self.store.staged() if one.id.order > newest and self.store.is_whole(one)]
        return self.notes.over(committed + sorted(waiting, key=lambda manifest: manifest.id.order))

    def matching(self, which: str) -> list[Manifest]:
        """Return the checkpoints that a word may mean, the first choice first; see :func:`matching`."""
        return matching(self.all(), which, self.notes.context)

    def newest(self) -> Manifest | None:
        """Return the checkpoint that ``latest`` means, if there is one, and read no manifest of an older one."""
        staged = [one for one in self.store.staged() if self.store.is_whole(one)]
        for identity in self.store.names():
            try:
                committed = self.store.manifest(identity)
            except DamagedCheckpoint as error:
                (self._damaged or warn_damaged)(identity, error)
                continue
            if committed is not None:
                staged = [*(one for one in staged if one.id.order > identity.order), committed]
                break
        found = newest(staged)
        return next(iter(self.notes.over([found]))) if found is not None else None

    def choices(self, which: str) -> Iterator[Manifest]:
        """Yield what :meth:`matching` returns; after the first ``latest`` the others are read when they are asked for."""
        if which != "latest":
            yield from self.matching(which)
            return
        first = self.newest()
        if first is not None:
            yield first
            yield from (manifest for manifest in self.matching(which) if manifest.id != first.id)

    def load(self, which: str = "latest", device: "torch.device | None" = None) -> tuple[Manifest, dict[str, Any]]:
        """Load a checkpoint, verified; of a damaged ``latest`` or ``best``, the one before it.

        Raises:
            NoCheckpoint: the word matches no checkpoint (the message lists those of the run), or every match is damaged.
        """
        found = self.find(which, device)
        if found is None:
            raise NoCheckpoint(self.no_match_message(which))
        return found

    def find(
        self, which: str = "latest", device: "torch.device | None" = None
    ) -> tuple[Manifest, dict[str, Any]] | None:
        """Load a checkpoint as :meth:`load` does; return ``None`` where the word matches none."""
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
        """Load a checkpoint with its configuration, both verified before it is chosen; see :meth:`load`.

        One without a configuration is passed over, unless it was imported.

        Args:
            which: see :meth:`load`.
            read: reads a checkpoint, verified. If ``None``, :func:`configured`.

        Raises:
            NoCheckpoint: no checkpoint matches, or no match is intact and has a configuration.
        """
        passed_over = 0

        def usable() -> Iterator[Manifest]:
            nonlocal passed_over
            for manifest in self.choices(which):
                if PARAMS in manifest.files or manifest.kind == "imported":
                    yield manifest
                else:
                    passed_over += 1
                    log.warning("Checkpoint %s has no %s: mltrain train did not write it.", manifest.name, PARAMS)

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

    def first_intact(
        self, candidates: Sequence[Manifest], only: Callable[[str], bool]
    ) -> tuple[Manifest, dict[str, bytearray]]:
        """Return the first of the candidates whose files (those that ``only`` wants) are intact, with these files.

        Raises:
            NoCheckpoint: every candidate is damaged.
        """
        return first_usable(self.store, candidates, lambda one: self.store.fetch(one, only=only))

    def first(self, which: str) -> Manifest:
        """Return the manifest of the first choice, unverified.

        Raises:
            NoCheckpoint: the word matches no checkpoint; the message lists those of the run.
        """
        candidates = self.matching(which)
        if not candidates:
            raise NoCheckpoint(self.no_match_message(which))
        return candidates[0]

    def no_match_message(self, which: str) -> str:
        """Say that there is no such checkpoint, and which there are."""
        manifests = self.all()
        there = ", ".join(f"{m.title} ({m.name})" for m in manifests[-20:]) or "none at all"
        return f"{self.store.title[0].upper()}{self.store.title[1:]} has no checkpoint {which!r}. There are: {there}."


def matching(manifests: Sequence[Manifest], which: str, context: Context) -> list[Manifest]:
    """Return the checkpoints that a word may mean, the first choice first.

    ``latest``, ``best`` and ``interrupted`` look at the current line; ``epoch:N`` and ``step:N`` prefer it; a name finds
    abandoned ones too.

    Raises:
        UsageError: the word is none of these.
    """
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
        f"{which!r:.80} does not name a checkpoint: latest, best, interrupted, epoch:N, step:N or a name such as "
        "step-000000420-a01 was expected."
    )


Configured = tuple[dict[str, Any], Mapping[str, Any] | None]
"""The parts of a checkpoint, and its configuration."""


def configured(
    store: CheckpointStore, manifest: Manifest, absent: "Mapping[str, torch.Tensor] | None" = None
) -> Configured:
    """Return the parts of a checkpoint and its configuration, both verified; None where it has no configuration.

    Args:
        store: that holds it.
        manifest: of the checkpoint.
        absent: for each sharded tensor what stands for it. If ``None``, the whole tensor.

    Raises:
        DamagedCheckpoint: it is not what was committed, or its configuration is none.
    """
    from mltrain.checkpoint.codec import decode  # torch takes seconds, and listing checkpoints needs none of it

    if absent is None:
        return store.load(manifest), configuration(store, manifest)
    files = store.fetch_unsharded(manifest, only=lambda name: name.startswith(("model", "state")))
    return decode(files, absent=absent), configuration(store, manifest)


def configuration(store: CheckpointStore, manifest: Manifest) -> Mapping[str, Any] | None:
    """Return the configuration of a checkpoint, verified, without its weights; ``None`` where it has none.

    Raises:
        DamagedCheckpoint: it is not what was committed.
    """
    content = store.fetch(manifest, only=PARAMS.__eq__).get(PARAMS)
    try:
        params = json.loads(content) if content is not None else None
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{PARAMS} of {manifest.name} is not valid JSON: {error}") from None
    if not isinstance(params, Mapping | None):
        raise DamagedCheckpoint(f"{PARAMS} of {manifest.name} holds a {type(params).__name__}, not a configuration.")
    return params


def first_usable(
    store: CheckpointStore,
    candidates: Iterable[Manifest],
    read: Callable[[Manifest], R],
    damaged: Callable[[CheckpointId, DamagedCheckpoint], None] | None = None,
) -> tuple[Manifest, R]:
    """Return the first of the candidates that can be read, with what was read; report each that cannot.

    Args:
        store: that holds them.
        candidates: the first choice first.
        read: reads all that the caller wants of one, verified.
        damaged: called with each that is not intact; if ``None``, it is logged.

    Raises:
        NoCheckpoint: none can.
    """
    tried = 0
    for manifest in candidates:
        tried += 1
        try:
            return manifest, read(manifest)
        except DamagedCheckpoint as error:
            (damaged or warn_damaged)(manifest.id, error)
    raise NoCheckpoint(f"None of the {tried} checkpoints asked for of {store.title} is usable. {store.remedy}")
