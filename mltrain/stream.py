"""A loader for iterable datasets that can say where they are."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import default_collate

from mltrain.batches import mixed
from mltrain.errors import UsageError
from mltrain.rng import Aside, seed_cheaply
from mltrain.state import Stateful


class StreamLoader:
    """Batches of an iterable dataset that can say where it is, resumable at any batch.

    Iterating over the dataset goes on from where it is; once it is exhausted, the next iteration begins anew. Items are
    drawn in this process, every batch under one seed of its own. For several processes there is the
    ``StatefulDataLoader`` of torchdata, which a :class:`~mltrain.Task` takes as it is.

    Args:
        dataset: iterable, with ``state_dict()`` and ``load_state_dict()`` that tell and set its position.
        batch_size: items a batch.
        drop_last: leave a last incomplete batch out.
        seed: if ``None``, ``torch.initial_seed()``, which the trainer sets from the configuration.
        collate: makes a batch of a list of items; torch's default.

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
                f"A {type(dataset).__name__} cannot say where it is: an iterable with state_dict() and load_state_dict() "
                "was expected. Give it both, or make it a dataset with a length and items by index for ResumableLoader."
            )
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}: a batch holds at least one item.")
        self.dataset: Any = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.seed = torch.initial_seed() if seed is None else seed
        self.epoch = 0
        self.batch = 0
        self._over = False
        self._collate = collate
        self._aside = Aside()

    def __iter__(self) -> Iterator[Any]:
        """Return the batches from the present position to the end of the epoch, then stand at the next epoch."""
        items: Iterator[Any] | None = None
        while not self._over:
            with self._aside:
                seed_cheaply(mixed(self.seed, self.epoch, self.batch))
                items = items if items is not None else iter(self.dataset)
                drawn = list(itertools.islice(items, self.batch_size))
                # An exhausted dataset is at its beginning again, so that this was the end has to be remembered here.
                self._over = len(drawn) < self.batch_size
                fetched = self._collate(drawn) if drawn and not (self._over and self.drop_last) else None
            if fetched is not None:
                self.batch += 1
                yield fetched
        self.epoch, self.batch, self._over = self.epoch + 1, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Return position and seed, and the dataset's own position."""
        own = {"epoch": self.epoch, "batch": self.batch, "over": self._over, "seed": self.seed}
        return {**own, "dataset": dict(self.dataset.state_dict())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue at a position."""
        self.epoch, self.batch, self.seed = state_dict["epoch"], state_dict["batch"], state_dict["seed"]
        self._over = state_dict["over"]
        self.dataset.load_state_dict(state_dict["dataset"])
