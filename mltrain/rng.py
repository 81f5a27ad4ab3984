"""The process's random number generators: state, and cheap seeding for every batch."""

import ctypes
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_MT19937_WORDS = 625
"""624 words of key and the position, NumPy's layout of the generator; verified before use."""


class Rng:
    """Python's, NumPy's, torch's and CUDA's generators as a stateful part."""

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all generators of this process."""
        version, words, gauss = random.getstate()
        state = {
            "python": [version, np.array(words, dtype=np.uint32), gauss],
            "numpy": np.random.get_state(legacy=False),
            "torch": torch.get_rng_state(),
            "cuda": [],
        }
        if self._cuda.is_available():
            state |= {"cuda": self._cuda.get_rng_state_all(), "cuda_device": self._cuda.current_device()}
        if torch.backends.mps.is_available():
            state["mps"] = torch.mps.get_rng_state()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore all generators.

        CUDA devices that this machine lacks are skipped. The current device gets the state of the device that was current.
        """
        version, words, gauss = state_dict["python"]
        random.setstate((version, tuple(int(word) for word in words), gauss))
        np.random.set_state(state_dict["numpy"])
        torch.set_rng_state(state_dict["torch"].cpu())
        states = dict(enumerate(state_dict["cuda"]))
        if self._cuda.is_available() and states:
            then, now = state_dict.get("cuda_device"), self._cuda.current_device()
            if then in states and then != now:
                states[now] = states[then]
            for device in states.keys() & set(range(self._cuda.device_count())):
                self._cuda.set_rng_state(states[device].cpu(), device)
        if "mps" in state_dict and torch.backends.mps.is_available():
            torch.mps.set_rng_state(state_dict["mps"].cpu())


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices); 0 <= ``seed`` < 2**32."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def own_rng(seed: int) -> Iterator[None]:
    """Run a block with separate random numbers; restore the generators."""
    rng = Rng()
    before = rng.state_dict()
    seed_everything(seed)
    try:
        yield
    finally:
        rng.load_state_dict(before)


def seed_cheaply(seed: int) -> None:
    """Seed the default generators of this process with 64 bits.

    ``torch.manual_seed`` visits every device and takes a hundred times as long.
    """
    torch.default_generator.manual_seed(seed >> 1)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


class Aside:
    """Restores Python's, NumPy's and torch's CPU generators after a block."""

    def __init__(self) -> None:
        self._numpy = _NumpyAside()

    def __enter__(self) -> None:
        self._torch = torch.default_generator.get_state()
        self._python = random.getstate()
        self._numpy.take()

    def __exit__(self, *_: object) -> None:
        self._numpy.put_back()
        random.setstate(self._python)
        torch.default_generator.set_state(self._torch)


class _NumpyAside:
    """Saves and restores NumPy's global generator quickly.

    NumPy's own ``get_state`` and ``set_state`` take 20 to 50 microseconds each. This class copies the words of the generator
    through the address of its ``ctypes`` interface. The words do not include a cached normal deviate, the second of a pair.
    So it calls ``get_state`` once, and again whenever the words have changed since or a deviate was cached: without a cached
    one, every draw changes the words.
    """

    def __init__(self) -> None:
        self._state: Any = None
        self._words = b""
        self._half_waits = True
        self._seen: Any = None

    def take(self) -> None:
        """Save the state."""
        words = self._read()
        if words is None or self._half_waits or words != self._words:
            self._state = np.random.get_state(legacy=False)
            self._half_waits = bool(self._state.get("has_gauss", 1))
            self._words = words if words is not None else b""

    def put_back(self) -> None:
        """Restore the saved state."""
        if self._half_waits or not self._words:
            np.random.set_state(self._state)
        else:
            np.random.seed(0)  # discards a deviate that is cached now
            ctypes.memmove(self._seen.ctypes.state_address, self._words, len(self._words))

    def _read(self) -> bytes | None:
        """Return the global generator's words; ``None`` for an unknown layout."""
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined] # documented, and missing in the stubs
        if generator is not self._seen:
            self._words, self._half_waits = b"", True
            self._seen = generator if _is_as_known(generator) else None
        if self._seen is None:
            return None
        return ctypes.string_at(generator.ctypes.state_address, 4 * _MT19937_WORDS)


def _is_as_known(generator: Any) -> bool:
    """Return whether it is a Mersenne Twister with known layout."""
    if type(generator) is not np.random.MT19937:
        return False
    state = generator.state["state"]
    words = np.frombuffer(ctypes.string_at(generator.ctypes.state_address, 4 * _MT19937_WORDS), np.uint32)
    return bool((words[:-1] == state["key"]).all() and words[-1] == state["pos"])
