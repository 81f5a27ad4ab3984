"""The random number generators of this process, seeded and set aside cheaply: a loader does both for every batch."""

import ctypes
import random
from typing import Any

import numpy as np
import torch

_MT19937_WORDS = 625
"""624 words of key and the position, as NumPy lays the generator out; checked before it is relied on."""


def seed_cheaply(seed: int) -> None:
    """Seed the default generators of this process with 64 bits.

    ``torch.manual_seed`` visits every device and costs a hundredfold.
    """
    torch.default_generator.manual_seed(seed >> 1)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


class Aside:
    """Sets the generators of Python, NumPy and torch (CPU) aside for the length of a ``with`` block."""

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
    """NumPy's global generator, whose own ``get_state`` and ``set_state`` cost 20 to 50 microseconds each.

    The words of a Mersenne Twister are copied through the address that its ``ctypes`` interface gives. What that does not
    show is the second half of a pair of normal deviates. So the whole state is asked for once, and again whenever the
    words have changed since, or such a half was waiting: without one, nothing can be drawn without changing the words.
    """

    def __init__(self) -> None:
        self._state: Any = None
        self._words = b""
        self._half_waits = True
        self._seen: Any = None

    def take(self) -> None:
        """Remember the state."""
        words = self._read()
        if words is None or self._half_waits or words != self._words:
            self._state = np.random.get_state(legacy=False)
            self._half_waits = bool(self._state.get("has_gauss", 1))
            self._words = words if words is not None else b""

    def put_back(self) -> None:
        """Bring the state back that was remembered."""
        if self._half_waits or not self._words:
            np.random.set_state(self._state)
        else:
            np.random.seed(0)  # which forgets a half that is waiting now
            ctypes.memmove(self._seen.ctypes.state_address, self._words, len(self._words))

    def _read(self) -> bytes | None:
        """Return the words of the global generator, or none where it is not what is known here."""
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined] # documented, and missing in the stubs
        if generator is not self._seen:
            self._words, self._half_waits = b"", True
            self._seen = generator if _is_as_known(generator) else None
        if self._seen is None:
            return None
        return ctypes.string_at(generator.ctypes.state_address, 4 * _MT19937_WORDS)


def _is_as_known(generator: Any) -> bool:
    """Whether a bit generator is a Mersenne Twister whose memory is laid out as this module believes."""
    if type(generator) is not np.random.MT19937:
        return False
    state = generator.state["state"]
    words = np.frombuffer(ctypes.string_at(generator.ctypes.state_address, 4 * _MT19937_WORDS), np.uint32)
    return bool((words[:-1] == state["key"]).all() and words[-1] == state["pos"])
