"""A loader with a position: order from (seed, epoch), one seed per batch.

The random numbers of a batch follow from (seed, epoch, batch) alone, so neither the number of
worker processes nor an interruption changes what augmentation draws.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, default_collate

from mltrain.batches import Fetch, Requests, checked_size, drawn_by_sums, mixed
from mltrain.errors import StateMismatch, UsageError
from mltrain.rng import Aside
from mltrain.state import Stateful

_MULTINOMIAL_ITEMS = 2**24
"""``torch.multinomial`` refuses more categories."""


@runtime_checkable
class Loader(Protocol):
    """A loader for the trainer: batches, and a position to save and restore."""

    def __iter__(self) -> Iterator[Any]:
        """Return the epoch's batches from the current position."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Return the position."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Restore a position."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """A loader that divides each batch among processes.

    All processes are at the same position.

    Attributes:
        weight: this process's share of the last batch, 0 to 1; the shares of all processes sum to 1.
    """

    weight: float

    def divide(self, rank: int, ranks: int) -> None:
        """Yield only the part of process ``rank`` (from 0) of ``ranks``."""
        ...


class ResumableLoader:
    """Batches of a map-style dataset, resumable at any batch.

    The order of the items follows from (seed, epoch). With ``num_workers=0`` the loader fetches a batch only when the training
    asks for it, so a dataset may have state (a counter, a cache, a position in a file, a private generator). If the dataset
    has ``state_dict()`` and ``load_state_dict()``, the loader saves and restores its state with the position. Worker
    processes fetch ahead, each with a copy of the dataset, so with ``num_workers`` above 0 the loader neither saves nor
    restores the state of a dataset.

    Several processes share each batch: process r of W gets the items from r/W to (r+1)/W of it. So position and order are the
    same on all processes and for every W, and no item is repeated or left out.

    Args:
        dataset: anything with ``__len__`` and ``__getitem__``.
        batch_size: items per batch, over all processes.
        shuffle: whether to draw a new order every epoch, instead of using the order of the dataset.
        weights: one non-negative number per item: each epoch draws ``len(dataset)`` items with replacement in
            proportion to them. Excludes ``shuffle=False``.
        drop_last: whether to leave out a last incomplete batch.
        num_workers: how many processes fetch ahead; with 0 this process fetches. It may change when a run is resumed.
        seed: if ``None``, ``torch.initial_seed()``, which the trainer sets from the configuration.
        seed_samples: whether to seed every sample instead of every batch, which is slower. Several processes always do so, so
            that augmentation does not depend on their number.
        collate: makes a batch of a list of items; by default torch's.
        pin_memory: whether to put batches into page-locked memory, for faster copies to a GPU.

    Attributes:
        epoch: the epoch that the next batch belongs to, from 0.
        batch: the position of the next batch in it, from 0.
        weight: see :class:`Divisible`.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        shuffle: bool = True,
        weights: Sequence[float] | torch.Tensor | None = None,
        drop_last: bool = False,
        num_workers: int = 0,
        seed: int | None = None,
        seed_samples: bool = False,
        collate: Callable[[list[Any]], Any] = default_collate,
        pin_memory: bool = False,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise UsageError(
                f"A {type(dataset).__name__} has no position by number. Expected a dataset with a length and items by index. "
                "Try: StreamLoader for an iterable dataset that has state_dict() and load_state_dict()."
            )
        self.dataset = dataset
        self.batch_size = checked_size(batch_size)
        if weights is not None and not shuffle:
            raise UsageError(
                "weights= draws items at random, which excludes shuffle=False. Try: leave one of them out."
            )
        self.shuffle = shuffle
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        if self.weights is not None and len(self.weights) != len(dataset):
            raise UsageError(
                f"The loader got {len(self.weights)} weights for {len(dataset)} items. Expected one per item."
            )
        if self.weights is not None and not (self.weights.min() >= 0 and 0 < self.weights.sum() < torch.inf):
            raise UsageError(
                "The weights are invalid. Expected finite numbers, none of them negative, and not all of them 0."
            )
        self.drop_last = drop_last
        self.num_workers, self._pin_memory = num_workers, pin_memory
        self.seed = torch.initial_seed() if seed is None else seed
        self.epoch = 0
        self.batch = 0
        if len(self) == 0:
            raise UsageError(
                f"{len(dataset)} items in batches of {batch_size}{' without the incomplete one' if drop_last else ''} "
                "make no batch. Expected at least one batch to train on."
            )
        self._rank, self._ranks, self.weight = 0, 1, 1.0
        self._fetch = Fetch(dataset, collate, seed_samples)
        self._collate = collate
        self._aside = Aside()

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def divide(self, rank: int, ranks: int) -> None:
        """Yield only the part of process ``rank`` (from 0) of ``ranks``.

        Raises:
            UsageError: a batch has fewer items than there are processes.
        """
        if self.batch_size < ranks:
            raise UsageError(
                f"batch_size={self.batch_size} is shared by {ranks} processes. Expected at least one item for each. Try: "
                f"batch_size={ranks}, or fewer processes."
            )
        self._rank, self._ranks = rank, ranks
        self._fetch = Fetch(self.dataset, self._collate, seed_samples=True)

    def __iter__(self) -> Iterator[Any]:
        """Yield the epoch's remaining batches, then begin the next epoch."""
        batches = len(self)
        state, remaining = mixed(self.seed, self.epoch), range(self.batch, batches)
        requests = Requests(self._order(), self.batch_size, state, remaining, self._part)
        for fetched in self._fetched(requests):
            count = min(self.batch_size, len(self.dataset) - self.batch * self.batch_size)
            self.weight = len(self._part(range(count))) / count
            self.batch += 1
            if self.batch == batches:
                self.epoch, self.batch = self.epoch + 1, 0
            yield fetched

    def state_dict(self) -> dict[str, Any]:
        """Return position, seed, lengths and the dataset's state (if any)."""
        own = {
            "epoch": self.epoch,
            "batch": self.batch,
            "seed": self.seed,
            "items": len(self.dataset),
            "batch_size": self.batch_size,
        }
        return {**own, "dataset": dict(self.dataset.state_dict())} if self._keeps_state else own

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue at a position.

        Raises:
            StateMismatch: the position is within an epoch, and the number of items or the batch size differs.
        """
        differing = [
            f"{name}: {state_dict[name]} then, {now} now"
            for name, now in (("items", len(self.dataset)), ("batch_size", self.batch_size))
            if state_dict[name] != now
        ]
        if differing and state_dict["batch"] > 0:
            raise StateMismatch(
                f"the data in the middle of an epoch ({'; '.join(differing)})",
                advice="Resume with the data and batch size of before, or from a checkpoint at the end of an epoch.",
            )
        self.epoch, self.batch, self.seed = state_dict["epoch"], state_dict["batch"], state_dict["seed"]
        if self._keeps_state and "dataset" in state_dict:
            self.dataset.load_state_dict(state_dict["dataset"])

    @property
    def _keeps_state(self) -> bool:
        """Whether the dataset is in this process and stateful."""
        return self.num_workers == 0 and isinstance(self.dataset, Stateful)

    def _part(self, batch: Sequence[int]) -> Sequence[int]:
        """Return this process's part of a batch."""
        return batch[len(batch) * self._rank // self._ranks : len(batch) * (self._rank + 1) // self._ranks]

    def _order(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch) >> 1)
        items = len(self.dataset)
        if self.weights is not None and items <= _MULTINOMIAL_ITEMS:
            return torch.multinomial(self.weights, items, replacement=True, generator=generator)
        if self.weights is not None:
            return drawn_by_sums(self.weights, items, generator)
        if self.shuffle:
            return torch.randperm(items, generator=generator)
        return torch.arange(items)

    def _fetched(self, requests: Requests) -> Iterator[Any]:
        if self.num_workers == 0 and not self._pin_memory:
            for request in requests:
                with self._aside:
                    fetched = self._fetch[request]
                yield fetched
            return
        # DataLoader draws a base seed for its workers from a generator, which must not be the training's.
        batches = DataLoader(
            self._fetch,
            batch_size=None,
            sampler=requests,
            num_workers=self.num_workers,
            pin_memory=self._pin_memory,
            generator=torch.Generator().manual_seed(0),
        )
        if self.num_workers:
            yield from batches
            return
        fetching = iter(batches)  # fetches in this process, whose generators belong to the training
        for _ in requests:
            with self._aside:
                fetched = next(fetching)
            yield fetched
