"""Stand-ins for CUDA devices."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


class Driver:
    """Registers memory of the host, or refuses to."""

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}
        self.refuses = False

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802 - as CUDA calls it
        if not self.refuses:
            self.registered[address] = size
        return 2 if self.refuses else 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - as CUDA calls it
        del self.registered[address]
        return 0


@dataclass(frozen=True)
class Stream:
    """A stream, and what it was given last."""

    cuda: "Cuda"
    device: torch.device
    name: str

    def __str__(self) -> str:
        return f"{self.name} of {self.device}"

    def wait_stream(self, other: "Stream") -> None:
        self.cuda.queued.append(f"{self} waits for {other}")

    def wait_event(self, event: "Event") -> None:
        assert event.stream is not None
        self.wait_stream(event.stream)


class Event:
    """The end of what a stream was given."""

    def __init__(self, blocking: bool = False) -> None:
        self.stream: Stream | None = None

    def record(self, stream: Stream) -> None:
        self.stream = stream
        stream.cuda.queued.append(f"{stream} ends")

    def synchronize(self) -> None:
        assert self.stream is not None
        self.stream.cuda.synchronize(self.stream.device)


class Cuda:
    """A device module of two simulated CUDA devices. It records its calls."""

    def __init__(self, current: int = 0, devices: int = 2) -> None:
        self.current = current
        self.states = [torch.tensor([device], dtype=torch.uint8) for device in range(devices)]
        self.waited: list[torch.device] = []
        self.made: list[torch.device] = []
        self.queued: list[str] = []
        self.driver = Driver()

    def cudart(self) -> Driver:
        return self.driver

    Event = Event

    def Stream(self, device: torch.device) -> Stream:  # noqa: N802 - as torch calls it
        self.made.append(device)
        return Stream(self, device, "side")

    def current_stream(self, device: torch.device) -> Stream:
        return Stream(self, device, "current")

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        yield

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return len(self.states)

    def current_device(self) -> int:
        return self.current

    def set_device(self, device: torch.device) -> None:
        self.current = device.index

    def synchronize(self, device: torch.device | None = None) -> None:
        self.waited.append(torch.device("cuda", self.current) if device is None else device)

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [state.clone() for state in self.states]

    def set_rng_state(self, state: torch.Tensor, device: int) -> None:
        self.states[device] = state.clone()


class OnCuda(torch.Tensor):
    """A tensor that says it is on a CUDA device."""

    number = 0

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.number)


class OnSecond(OnCuda):
    number = 1
