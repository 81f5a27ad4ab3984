"""The position of a loop on accelerate within its data."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import skip_first_batches
from accelerate.data_loader import get_sampler
from torch.utils.data import IterableDataset

from mltrain.rng import Rng

_END = object()


class Position:
    """Position of a loop: its counters, and the epoch's remaining batches.

    Args:
        state: a result of :meth:`state_dict`. If ``None``, the loop begins.

    Attributes:
        step: number of batches trained in all epochs.
        epoch: number of complete epochs.
        batch: number of batches trained in the current epoch.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.step, self.epoch, self.batch = (state or _START)["progress"]
        self._resumed = state
        self._of_epoch: Any = state["random_of_epoch"] if state is not None else None
        self._loader: Any = None
        if state is not None:
            Rng().load_state_dict(state["random"]["global"])

    def batches(self, loader: Any) -> Iterator[Any]:
        """Yield and count the remaining batches of the current epoch.

        After the last batch the next epoch begins. After a resume the epoch continues in the same order, with any sampler: the
        iterator is created with the random numbers from the start of the epoch; those of the checkpoint are restored then.

        Args:
            loader: the loader that ``accelerator.prepare`` returned, the same one in every epoch.
        """
        resumed, self._resumed = self._resumed, None
        within = resumed is not None and self.batch > 0
        if self._loader is None and _is_stateful(loader):
            loader.load_state_dict({})  # discards the iterator from prepare(), which has drawn an order
        self._loader = loader
        if resumed is not None:
            _set_random(loader, self._of_epoch if within else resumed["random"])
        if not within:
            self._of_epoch = _random(loader)
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(self.epoch)
        rest = loader
        if within and resumed is not None and "loader" in resumed:
            loader.load_state_dict(resumed["loader"])
        elif within:
            rest = skip_first_batches(loader, self.batch)
        remaining = iter(rest)
        batch = next(remaining, _END)
        if within and resumed is not None:
            _set_random(loader, resumed["random"])
        while batch is not _END:
            self.step, self.batch = self.step + 1, self.batch + 1
            yield batch
            batch = next(remaining, _END)
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return counters, random numbers and the position of a stream.

        The random numbers are the current ones and those from the start of the epoch.
        """
        loader = self._loader
        state = {
            "progress": [self.step, self.epoch, self.batch],
            "random": _random(loader),
            "random_of_epoch": self._of_epoch,
        }
        is_stream = self.batch > 0 and _is_stateful(loader) and isinstance(loader.dataset, IterableDataset)
        return {**state, "loader": loader.state_dict()} if is_stream else state


_START: Mapping[str, Any] = {"progress": [0, 0, 0]}


def _is_stateful(loader: Any) -> bool:
    return bool(getattr(loader, "use_stateful_dataloader", False))


def _generators(loader: Any) -> list[torch.Generator]:
    """Return a loader's generators, which may determine an epoch's order."""
    owners = (loader, get_sampler(loader), loader.dataset) if loader is not None else ()
    found = {id(one): one for owner in owners if isinstance(one := getattr(owner, "generator", None), torch.Generator)}
    return list(found.values())


def _random(loader: Any) -> dict[str, Any]:
    state = {"global": Rng().state_dict(), "loader": [one.get_state() for one in _generators(loader)]}
    seed = getattr(get_sampler(loader), "initial_seed", None) if loader is not None else None
    return state if seed is None else {**state, "seed": seed}


def _set_random(loader: Any, state: Mapping[str, Any]) -> None:
    Rng().load_state_dict(state["global"])
    for generator, own in zip(_generators(loader), state["loader"], strict=False):
        generator.set_state(own.cpu())
    if "seed" in state:
        get_sampler(loader).initial_seed = state["seed"]
