"""A loader for iterable datasets that report their position."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import default_collate

from mltrain.batches import checked_size, mixed
from mltrain.errors import UsageError
from mltrain.rng import Aside, seed_cheaply
from mltrain.state import Stateful


class StreamLoader:
    """Batches of an iterable dataset, resumable at any batch.

    An iterator of the dataset has to continue from the dataset's position, and to start again once the dataset is exhausted.
    The loader draws items in this process, with one seed per batch. For worker processes use torchdata's
    ``StatefulDataLoader``, which a :class:`~mltrain.Task` accepts directly.

    Args:
        dataset: iterable, with ``state_dict()`` and ``load_state_dict()`` that return and set its position.
        batch_size: items per batch.
        drop_last: whether to leave out a last incomplete batch.
        seed: if ``None``, ``torch.initial_seed()``, which the trainer sets from the configuration.
        collate: makes a batch of a list of items; by default torch's.

    Attributes:
        epoch: the epoch that the next batch belongs to, from 0.
        batch: the position of the next batch in it, from 0.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        drop_last: bool = False,
        seed: int | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        if not (isinstance(dataset, Iterable) and isinstance(dataset, Stateful)):
            raise UsageError(
                f"A {type(dataset).__name__} cannot report its position. Expected an iterable with state_dict() and "
                "load_state_dict(). Try: add both, or use ResumableLoader for a dataset with a length and items by index."
            )
        self.dataset: Any = dataset
        self.batch_size = checked_size(batch_size)
        self.drop_last = drop_last
        self.seed = torch.initial_seed() if seed is None else seed
        self.epoch = 0
        self.batch = 0
        self._over = False
        self._collate = collate
        self._aside = Aside()

    def __iter__(self) -> Iterator[Any]:
        """Yield the epoch's remaining batches, then begin the next epoch."""
        items: Iterator[Any] | None = None
        while not self._over:
            with self._aside:
                seed_cheaply(mixed(self.seed, self.epoch, self.batch))
                items = items if items is not None else iter(self.dataset)
                drawn = list(itertools.islice(items, self.batch_size))
                # An exhausted dataset is at its beginning again, so the loader has to remember that this was the end.
                self._over = len(drawn) < self.batch_size
                fetched = self._collate(drawn) if drawn and not (self._over and self.drop_last) else None
            if fetched is not None:
                self.batch += 1
                yield fetched
        self.epoch, self.batch, self._over = self.epoch + 1, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Return position and seed, and the dataset's state."""
        own = {"epoch": self.epoch, "batch": self.batch, "over": self._over, "seed": self.seed}
        return {**own, "dataset": dict(self.dataset.state_dict())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue at a position."""
        self.epoch, self.batch, self.seed = state_dict["epoch"], state_dict["batch"], state_dict["seed"]
        self._over = state_dict["over"]
        self.dataset.load_state_dict(state_dict["dataset"])
