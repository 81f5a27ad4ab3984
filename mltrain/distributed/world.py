"""The ranks of one training, and the messages between them.

Messages use their own gloo group, never the group that averages gradients. Every wait has a timeout, and fails at once when a
rank ends or its connection closes.
"""

import atexit
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist

from mltrain.checkpoint.flat_tensors import as_bytes
from mltrain.checkpoint.pytree import flatten, unflatten
from mltrain.distributed.joining import did_not_connect, joined, peer_seconds
from mltrain.errors import MltrainError, PeerLost, UsageError
from mltrain.redaction import first_line

_FAILURE = "failure"
_REASON_SECONDS = 2.0
"""How long a rank waits for the reason of a lost peer, and rank 0 for its peers to read its own."""


class World:
    """The ranks of one training.

    All make the same calls in the same order.

    Args:
        seconds: timeout of every wait for other ranks. If ``None``, ``MLTRAIN_PEER_SECONDS``, else 1800.
        grace: timeout in seconds of a failed rank's wait for the others.

    Attributes:
        rank: of this process, from 0.
        size: number of ranks.
        seconds, grace: the timeouts.
        channel: for messages in the background. ``None`` until all ranks have opened it.

    Raises:
        UsageError: this machine has fewer GPUs than processes, or ``MLTRAIN_PEER_SECONDS`` is no number of seconds.
        PeerLost: the other ranks did not connect in time.
    """

    def __init__(self, seconds: float | None = None, grace: float = 25.0) -> None:
        self.grace, self.seconds = grace, seconds if seconds is not None else peer_seconds()
        timeout = timedelta(seconds=self.seconds)
        local = int(os.environ.get("LOCAL_RANK") or 0)
        if torch.cuda.is_available():
            if local >= torch.cuda.device_count():
                raise UsageError(
                    f"Process {local} of this machine has no GPU. Expected one for each process, got "
                    f"{torch.cuda.device_count()}. Try: torchrun --nproc-per-node gpu, or CUDA_VISIBLE_DEVICES= for the CPU"
                )
            torch.cuda.set_device(local)
        try:
            if not dist.is_initialized():  # a second training uses the connections of the first
                backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
                store, rank, size = joined(self.seconds)
                dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
                atexit.register(_disconnect)
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self._messages = Channel(self)
            self._store: Any = dist.distributed_c10d._get_default_store()
            if self.rank == 0:
                for key in (_FAILURE, *self._acknowledgements()):
                    self._store.delete_key(key)  # from an earlier training of the same processes
        except (RuntimeError, ValueError) as error:
            raise did_not_connect(first_line(error)) from error
        self.channel: Channel | None = None
        self.gather(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with suppress(RuntimeError):
            self._store.set(f"acknowledged/{self.rank}", "")  # rank 0 need not wait for this one
        if error is not None:
            self.fail(error)

    def open_channel(self) -> None:
        """Open the background channel, on all ranks at once."""
        self.channel = Channel(self)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank.

        Raises:
            PeerLost: a rank has ended, or does not answer in time.
        """
        return self._messages.gather(value)

    def gather_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return all ranks' tensors, stacked along a new first dimension.

        Args:
            tensor: on the CPU, of the same shape and dtype on all ranks.

        Raises:
            PeerLost: a rank has ended, or does not answer in time.
        """
        tensors = [torch.empty_like(tensor) for _ in range(self.size)]
        with _collective(self):
            dist.all_gather(tensors, tensor, group=self._messages.group)
        return torch.stack(tensors)

    def share(self, value: Any = None) -> Any:
        """Return the value of rank 0.

        Raises:
            PeerLost: a rank has ended, or does not answer in time.
        """
        return self._messages.share(value)

    def share_state(self, state: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return rank 0's state, with its tensors on the CPU.

        Each tensor is a broadcast, so the state is in memory only once.

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
            with _collective(self):
                dist.broadcast(content, src=0, group=self._messages.group)
            tensors[name] = content.view(dtype).view(shape) if content.numel() else torch.empty(shape, dtype=dtype)
        shared: dict[str, Any] = unflatten(tree, tensors)
        return shared

    def note(self, key: str, text: str) -> None:
        """Leave the other ranks a note, without waiting. Callable from any thread. Raises :class:`PeerLost`."""
        with _collective(self):
            self._store.set(f"note/{key}", text)

    def noted(self, key: str) -> str | None:
        """Return the newest note of a key, or ``None``. Raises :class:`PeerLost`."""
        with _collective(self):
            return self._store.get(f"note/{key}").decode() if self._store.check([f"note/{key}"]) else None

    def awaited(self, keys: Sequence[str], seconds: float) -> bool:
        """Wait for notes; return whether all came in time."""
        try:
            self._store.wait([f"note/{key}" for key in keys], timedelta(seconds=seconds))
        except RuntimeError:
            return False
        return True

    def sum(self, tensor: torch.Tensor) -> None:
        """Sum a tensor in place, over the training's group."""
        with _collective(self):
            dist.all_reduce(tensor)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by rank 0's, on the training's group."""
        with _collective(self):
            dist.broadcast(tensor, src=0)

    @contextmanager
    def foreign_collectives(self) -> Iterator[None]:
        """Raise :class:`PeerLost` for a block's failed collectives, such as FSDP2's.

        Other errors pass unchanged.
        """
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "/gloo/" in str(error):
                raise self.lost(error) from error
            raise

    def agree(self, refusal: BaseException | None) -> None:
        """Raise on all ranks if any rank has an error.

        A rank raises its own error, or that of the first rank with one. Other ranks raise rank 0's, which reports it for all.

        Args:
            refusal: the error of this rank. If ``None``, this rank agrees.

        Raises:
            PeerLost: another rank has an error.
        """
        own = None if refusal is None else (f"{type(refusal).__name__}: {refusal}", exit_code_of(refusal))
        for rank, other in enumerate(self.gather(own)):
            if other is not None and (refusal is None or rank == 0 < self.rank):
                raise PeerLost(f"Rank {rank} refuses: {other[0]}", rank, other[1])
        if refusal is not None:
            raise refusal

    @contextmanager
    def as_single_process(self) -> Iterator[None]:
        """Run a block as if this were the only process.

        The block waits for no other rank. Otherwise metrics of torchmetrics, for example, sum over all ranks.
        """
        group, dist.GroupMember.WORLD = dist.GroupMember.WORLD, None
        try:
            yield
        finally:
            dist.GroupMember.WORLD = group

    def fail(self, error: BaseException) -> None:
        """Record this rank's error, and close all connections."""
        try:
            if not isinstance(error, PeerLost):
                text = f"{self.rank} {exit_code_of(error)} {type(error).__name__}: {error}"
                self._store.set(_FAILURE, text[:2000])
        except RuntimeError:  # the process that hosted the store has ended
            pass
        self._messages.group = None  # gloo closes its connections once nothing refers to the group
        if self.channel is not None:
            self.channel.group = None
        _disconnect()
        if self.rank == 0 and not isinstance(error, PeerLost):  # the store that holds the reason ends with this process
            with suppress(RuntimeError):
                self._store.wait(self._acknowledgements(), timedelta(seconds=_REASON_SECONDS))

    def _acknowledgements(self) -> list[str]:
        return [f"acknowledged/{rank}" for rank in range(1, self.size)]

    def lost(self, error: BaseException) -> PeerLost:
        """Return a failed collective's error with a peer's recorded reason."""
        try:
            self._store.wait([_FAILURE], timedelta(seconds=_REASON_SECONDS))
            rank, code, why = self._store.get(_FAILURE).decode().split(" ", 2)
            self._store.set(f"acknowledged/{self.rank}", "")
            return PeerLost(f"Rank {rank} ended: {why}", int(rank), int(code))
        except (RuntimeError, ValueError):
            return PeerLost(
                f"Another rank ended or did not answer within {self.seconds:.0f} s: {first_line(error)} Its output "
                "has the cause. Try: the same command again, with --run-key, or MLTRAIN_PEER_SECONDS for slower ranks"
            )


class Channel:
    """Messages between the ranks, on its own gloo group; all ranks create it at once.

    Args:
        world: the ranks.

    Attributes:
        rank, size: those of the world.
        group: the gloo group.
    """

    def __init__(self, world: World) -> None:
        self.rank, self.size = world.rank, world.size
        self._world = world
        self.group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=world.seconds))

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank. Raises :class:`PeerLost`."""
        values: list[Any] = [None] * self.size
        with _collective(self._world):
            dist.all_gather_object(values, value, group=self.group)
        return values

    def share(self, value: Any = None) -> Any:
        """Return the value of rank 0. Raises :class:`PeerLost`."""
        values = [value]
        with _collective(self._world):
            dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a process with this error."""
    if isinstance(error, KeyboardInterrupt):
        return int(getattr(error, "exit_code", 130))
    return error.exit_code if isinstance(error, MltrainError) else 1


@contextmanager
def _collective(world: World) -> Iterator[None]:
    """Raise :class:`PeerLost` for errors of collectives and the store."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # ValueError: the connections are closed already
        raise world.lost(error) from error


def _disconnect() -> None:
    """Close the connections, to end other ranks' waits at once."""
    if dist.is_initialized():
        with suppress(RuntimeError, ValueError, AssertionError):  # some are closed already
            dist.destroy_process_group()
