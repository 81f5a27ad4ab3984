"""A loader that knows where it is: order from (seed, epoch), one seed a batch, position in the epoch.

Every batch is fetched under random numbers that follow from (seed, epoch, batch) alone, so neither the number of
worker processes nor an interruption changes what augmentation draws.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, default_collate

from mltrain.batches import Fetch, Requests, drawn_by_sums, mixed
from mltrain.errors import StateMismatch, UsageError
from mltrain.rng import Aside
from mltrain.state import Stateful

_MULTINOMIAL_ITEMS = 2**24
"""More categories than these are refused by ``torch.multinomial``."""


@runtime_checkable
class Loader(Protocol):
    """What a trainer needs of a loader: batches, and a position that can be taken away and given back."""

    def __iter__(self) -> Iterator[Any]:
        """Return the batches from the present position to the end of the epoch."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Return the position."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take a position over."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """A loader whose batches several processes share: each gets a part, and all stand at the same position.

    Attributes:
        weight: of this process's part in the batch that was given last, 0 to 1; those of all processes sum to 1.
    """

    weight: float

    def divide(self, rank: int, ranks: int) -> None:
        """Give only the part of process ``rank``, counted from 0, of ``ranks``."""
        ...


class ResumableLoader:
    """Batches of a map-style dataset, in an order that follows from (seed, epoch), resumable at any batch.

    With ``num_workers=0`` a batch is fetched when the training asks for it, and never earlier, so a dataset may have state
    (a counter, a cache, a position in a file, a generator of its own). If the dataset has ``state_dict()`` and
    ``load_state_dict()``, its state is saved and restored with the position. Worker processes fetch ahead, each with
    a copy of the dataset, so with ``num_workers`` above 0 the state of a dataset is neither saved nor restored.

    Several processes share each batch: process r of W gets the items from r/W to (r+1)/W of it. So position and order are the
    same on all of them and for every W, and no item comes twice or is left out.

    Args:
        dataset: anything with ``__len__`` and ``__getitem__``.
        batch_size: items a batch, over all processes.
        shuffle: whether every epoch has a new order; otherwise items come as they stand.
        weights: one non-negative number an item: each epoch draws ``len(dataset)`` items with replacement in
            proportion to them. Excludes ``shuffle=False``.
        drop_last: leave a last incomplete batch out.
        num_workers: how many processes fetch ahead; 0 fetches in this one. It may change when a run is resumed.
        seed: if ``None``, ``torch.initial_seed()``, which the trainer sets from the configuration.
        seed_samples: a seed for every sample in place of every batch, and slower. Several processes always do so: what
            augmentation draws does not depend on how many there are.
        collate: makes a batch of a list of items; torch's default.
        pin_memory: whether batches are put into page-locked memory, for faster copies to a GPU.

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
                f"A {type(dataset).__name__} has no length and no items by index, so its position cannot be kept by "
                "number. For an iterable dataset that has state_dict() and load_state_dict() there is StreamLoader."
            )
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}: a batch holds at least one item.")
        self.dataset = dataset
        self.batch_size = batch_size
        if weights is not None and not shuffle:
            raise UsageError(
                "weights= draws items at random, which excludes shuffle=False. Try: leave one of them out."
            )
        self.shuffle = shuffle
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        if self.weights is not None and len(self.weights) != len(dataset):
            raise UsageError(f"{len(self.weights)} weights for {len(dataset)} items: there has to be one for each.")
        if self.weights is not None and not (self.weights.min() >= 0 and 0 < self.weights.sum() < torch.inf):
            raise UsageError("The weights are proportions: finite, none of them negative, and not all of them 0.")
        self.drop_last = drop_last
        self.num_workers, self._pin_memory = num_workers, pin_memory
        self.seed = torch.initial_seed() if seed is None else seed
        self.epoch = 0
        self.batch = 0
        if len(self) == 0:
            raise UsageError(
                f"{len(dataset)} items in batches of {batch_size}{' without the incomplete one' if drop_last else ''} "
                "make no batch at all: nothing to train on."
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
        """Give only the part of process ``rank``, counted from 0, of ``ranks``.

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
        """Return the batches from the present position to the end of the epoch, then stand at the next epoch."""
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
        """Return position, seed, the lengths that belong to them, and the dataset's own state where it has one."""
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
            StateMismatch: in the middle of an epoch, with another number of items or another batch size.
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
        """Whether this process's copy of the dataset is the one that changes, and its state can be saved."""
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
        # DataLoader draws a base seed for its workers from a generator: from one of its own, not from the training's.
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
