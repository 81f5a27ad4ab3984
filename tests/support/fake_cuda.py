"""Stand-ins for CUDA devices."""

import torch


class Cuda:
    """A device module of two CUDA devices that are not there; notes what it is asked for."""

    def __init__(self, current: int = 0, devices: int = 2) -> None:
        self.current = current
        self.states = [torch.tensor([device], dtype=torch.uint8) for device in range(devices)]
        self.waited: list[torch.device] = []

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
