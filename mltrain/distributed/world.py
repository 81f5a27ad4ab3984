"""The processes of one training: which of them this is, and the messages between them.

Messages go through a gloo group of its own, never through the group that averages gradients. Every wait is
bounded, and ends at once where a rank has left or its connection is closed.
"""

import atexit
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from mltrain.checkpoint.flat_tensors import as_bytes
from mltrain.checkpoint.pytree import flatten, unflatten
from mltrain.distributed.lives import without_earlier_lives
from mltrain.errors import MltrainError, PeerLost, UsageError, sentence

_LEFT = "left"
_REASON_SECONDS = 2.0
"""How long a rank whose peer is gone waits for that peer's reason."""


class World:
    """The processes of one training, which all make the same calls in the same order.

    Args:
        seconds: for which a rank waits for the others at most. If ``None``, ``MLTRAIN_PEER_SECONDS``, else 1800.

    Attributes:
        rank: of this process, from 0.
        size: how many processes there are.
        seconds: for which a rank waits.
        channel: for messages in the background, once all have opened it.

    Raises:
        UsageError: this machine has fewer GPUs than processes.
        PeerLost: the others did not come in time.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds if seconds is not None else _patience()
        timeout = timedelta(seconds=self.seconds)
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if torch.cuda.is_available():
            if local >= torch.cuda.device_count():
                raise UsageError(
                    f"Process {local} of this machine has no GPU: there are {torch.cuda.device_count()}. Expected one for each "
                    "process. Try: torchrun --nproc-per-node gpu; or hide them all: CUDA_VISIBLE_DEVICES="
                )
            torch.cuda.set_device(local)
        try:
            if not dist.is_initialized():  # a second training goes on with the connections of the first
                backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
                store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
                store = without_earlier_lives(store, rank, size, self.seconds)
                dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
                atexit.register(_disconnect)
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self._group: Any = dist.new_group(backend="gloo", timeout=timeout)
            self._store: Any = dist.distributed_c10d._get_default_store()
            if self.rank == 0:
                for key in (_LEFT, *self._heard()):
                    self._store.delete_key(key)  # which an earlier training of the same processes left
        except (RuntimeError, ValueError) as error:
            raise PeerLost(f"The processes of this training did not find each other: {_first_line(error)}") from error
        self.channel: Channel | None = None
        self.gather(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with suppress(RuntimeError):
            self._store.set(f"heard/{self.rank}", "")  # rank 0 need not wait for this one
        if error is not None:
            self._leave(error)

    def open_channel(self) -> None:
        """Let the ranks speak in the background as well; all of them at once."""
        self.channel = Channel(self)

    def gather(self, value: Any) -> list[Any]:
        """Return the value that each rank gives, by rank.

        Raises:
            PeerLost: a rank has ended, or does not answer in time.
        """
        values: list[Any] = [None] * self.size
        with self._bounded():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def gather_alike(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the CPU as each rank has it, of one shape on all, by rank along a new first dimension.

        Raises:
            PeerLost: a rank has ended, or does not answer in time.
        """
        tensors = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._bounded():
            dist.all_gather(tensors, tensor, group=self._group)
        return torch.stack(tensors)

    def share(self, value: Any = None) -> Any:
        """Return the value that rank 0 gives.

        Raises:
            PeerLost: a rank has ended, or does not answer in time.
        """
        values = [value]
        with self._bounded():
            dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def share_state(self, state: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return rank 0's state, its tensors on the CPU: one broadcast a tensor, so it is in memory once.

        Raises:
            PeerLost: a rank has ended, or does not answer in time.
        """
        flat = flatten(state or {})
        described = [(name, one.dtype, tuple(one.shape)) for name, one in flat.tensors.items()]
        tree, described = self.share((flat.tree, described))
        tensors: dict[str, torch.Tensor] = {}
        for name, dtype, shape in described:
            own = flat.tensors[name].detach().cpu() if self.rank == 0 else torch.empty(shape, dtype=dtype)
            content = as_bytes(own.contiguous())
            with self._bounded():
                dist.broadcast(content, src=0, group=self._group)
            tensors[name] = content.view(dtype).view(shape) if content.numel() else torch.empty(shape, dtype=dtype)
        shared: dict[str, Any] = unflatten(tree, tensors)
        return shared

    def note(self, key: str, text: str) -> None:
        """Leave a note for the other ranks, from any thread; nobody waits for it. Raises :class:`PeerLost`."""
        with self._bounded():
            self._store.set(f"note/{key}", text)

    def noted(self, key: str) -> str | None:
        """Return the newest note of this key, if there is one. Raises :class:`PeerLost`."""
        with self._bounded():
            return self._store.get(f"note/{key}").decode() if self._store.check([f"note/{key}"]) else None

    def sum(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its sum over all ranks, on the group of the training."""
        with self._bounded():
            dist.all_reduce(tensor)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by rank 0's, on the group of the training."""
        with self._bounded():
            dist.broadcast(tensor, src=0)

    @contextmanager
    def collectives_of_others(self) -> Iterator[None]:
        """Raise :class:`PeerLost` where a collective fails in a block that makes its own, as FSDP2 does; errors else stay."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "/gloo/" in str(error):
                raise self.lost(error) from error
            raise

    def agree(self, refusal: BaseException | None) -> None:
        """Return when no rank refuses; else raise on all ranks, each its own error or that of the first that refuses.

        Raises:
            PeerLost: another rank refuses, or rank 0, which reports what all of them refuse.
        """
        code = refusal.exit_code if isinstance(refusal, MltrainError) else 1
        own = None if refusal is None else (f"{type(refusal).__name__}: {refusal}", code)
        for rank, other in enumerate(self.gather(own)):
            if other is not None and (refusal is None or rank == 0 < self.rank):
                lost = PeerLost(f"Rank {rank} refuses: {other[0]}")
                lost.rank, lost.exit_code = (rank, other[1]) if rank == 0 else (lost.rank, lost.exit_code)
                raise lost
        if refusal is not None:
            raise refusal

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Run a block as if this were the only process: what only one rank does must not wait for the others.

        The metrics of torchmetrics, for example, sum over all ranks whenever torch.distributed is initialized.
        """
        group, dist.GroupMember.WORLD = dist.GroupMember.WORLD, None
        try:
            yield
        finally:
            dist.GroupMember.WORLD = group

    def _bounded(self) -> "_Bounded":
        return _Bounded(self)

    def _leave(self, error: BaseException) -> None:
        """Leave a reason for the others, and close the connections that they wait at."""
        try:
            if not isinstance(error, PeerLost):
                code = error.exit_code if isinstance(error, MltrainError) else 1
                self._store.set(_LEFT, f"{self.rank} {code} {type(error).__name__}: {error}"[:2000])
        except RuntimeError:  # the store has ended with the process that had it
            pass
        self._group = None  # gloo closes its connections when nothing refers to the group any more
        if self.channel is not None:
            self.channel.group = None
        _disconnect()
        if self.rank == 0 and not isinstance(error, PeerLost):  # the reason is in a store that ends with this process
            with suppress(RuntimeError):
                self._store.wait(self._heard(), timedelta(seconds=_REASON_SECONDS))

    def _heard(self) -> list[str]:
        return [f"heard/{rank}" for rank in range(1, self.size)]

    def lost(self, error: BaseException) -> PeerLost:
        """Return the error of a rank whose peer is gone, with that peer's reason where it left one."""
        try:
            self._store.wait([_LEFT], timedelta(seconds=_REASON_SECONDS))
            rank, code, why = self._store.get(_LEFT).decode().split(" ", 2)
            self._store.set(f"heard/{self.rank}", "")
            lost = PeerLost(f"Rank {rank} ended: {why}")
            lost.rank, lost.exit_code = int(rank), int(code)
            return lost
        except (RuntimeError, ValueError):
            return PeerLost(
                f"Another rank ended or did not answer within {self.seconds:.0f} s: {sentence(_first_line(error))} Its own "
                "output tells why. Try: the same command again, with --run-key, or MLTRAIN_PEER_SECONDS for slower ranks"
            )


class Channel:
    """Messages between the ranks in the background, about checkpoints, on a gloo group of its own; all ranks open it at once.

    Attributes:
        rank, size: as of the world.
        group: the group.
    """

    def __init__(self, world: World) -> None:
        self.rank, self.size = world.rank, world.size
        self._world = world
        self.group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=world.seconds))

    def gather(self, value: Any) -> list[Any]:
        """Return the value that each rank gives, by rank. Raises :class:`PeerLost`."""
        values: list[Any] = [None] * self.size
        with _Bounded(self._world):
            dist.all_gather_object(values, value, group=self.group)
        return values

    def share(self, value: Any = None) -> Any:
        """Return the value that rank 0 gives. Raises :class:`PeerLost`."""
        values = [value]
        with _Bounded(self._world):
            dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]


class _Bounded:
    """Turns the error of a collective into :class:`PeerLost`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (RuntimeError, ValueError)):  # the latter where the connections are closed already
            raise self._world.lost(error) from error


def _patience() -> float:
    given = os.environ.get("MLTRAIN_PEER_SECONDS") or "1800"
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds <= 10**7:
        raise UsageError(f"MLTRAIN_PEER_SECONDS={given!r:.40} is no time. Expected seconds, at least 1. Try: unset it")
    return seconds


def _disconnect() -> None:
    """Close the connections to the other ranks; who waits at one of them stops to wait."""
    if dist.is_initialized():
        with suppress(RuntimeError, ValueError, AssertionError):  # what is closed already
            dist.destroy_process_group()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
