"""Where a loop on accelerate is, and the batches that are left of its epoch."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import skip_first_batches
from accelerate.data_loader import get_sampler
from torch.utils.data import IterableDataset

from mltrain.rng import Rng

_END = object()


class Position:
    """How far a loop is, and the batches that are left.

    Args:
        state: that :meth:`state_dict` gave. If ``None``, the loop begins.

    Attributes:
        step: batches trained in all epochs.
        epoch: epochs done.
        batch: batches trained in the epoch under way.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.step, self.epoch, self.batch = (state or _BEGIN)["progress"]
        self._resumed = state
        self._of_epoch: Any = state["random_of_epoch"] if state is not None else None
        self._loader: Any = None
        if state is not None:
            Rng().load_state_dict(state["random"]["global"])

    def batches(self, loader: Any) -> Iterator[Any]:
        """Yield the batches that are left of the epoch under way, and count them; at their end the next epoch begins.

        After a resume the epoch has the order that it had, whatever the sampler: the random numbers are those of the epoch's
        begin while the iterator is made, and then those of the checkpoint.

        Args:
            loader: as ``accelerator.prepare`` returned it, the same one in every epoch.
        """
        resumed, self._resumed = self._resumed, None
        within = resumed is not None and self.batch > 0
        if self._loader is None and _is_stateful(loader):
            loader.load_state_dict({})  # drops the iterator that was made, with an order drawn, when it was prepared
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
        """Return the counters, the random numbers of now and of the epoch's begin, and the state of a stream."""
        loader = self._loader
        state = {
            "progress": [self.step, self.epoch, self.batch],
            "random": _random(loader),
            "random_of_epoch": self._of_epoch,
        }
        is_stream = self.batch > 0 and _is_stateful(loader) and isinstance(loader.dataset, IterableDataset)
        return {**state, "loader": loader.state_dict()} if is_stream else state


_BEGIN: Mapping[str, Any] = {"progress": [0, 0, 0]}


def _is_stateful(loader: Any) -> bool:
    return bool(getattr(loader, "use_stateful_dataloader", False))


def _generators(loader: Any) -> list[torch.Generator]:
    """Return the generators of a loader's own, from which the order of an epoch may be drawn."""
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
