"""Tensors that differ in a bit have different digests."""

import pytest
import torch

from mltrain.checkpoint.flat_tensors import as_bytes
from mltrain.distributed.replicas import digest, digests, sums


@pytest.mark.parametrize("how", [digest, lambda tensor: sums(as_bytes(tensor))], ids=["on the CPU", "on a device"])
def test_every_changed_bit_and_every_swap_changes_the_digest(how: object) -> None:
    base = torch.arange(41, dtype=torch.uint8) * 5
    seen = []
    for place in range(41):
        for bit in range(8):
            changed = base.clone()
            changed[place] ^= 1 << bit
            seen.append(how(changed))  # type: ignore[operator]
    for place in range(0, 36, 4):
        swapped = base.clone()
        swapped[place : place + 4], swapped[place + 4 : place + 8] = (
            base[place + 4 : place + 8],
            base[place : place + 4],
        )
        seen.append(how(swapped))  # type: ignore[operator]
    assert len(seen) == 41 * 8 + 9
    assert how(base) not in seen  # type: ignore[operator]


def test_zero_and_minus_zero_another_dtype_and_another_shape_differ() -> None:
    states = [torch.zeros(4), -torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(5)]
    assert len({str(digests({"one": state})) for state in states}) == len(states)
    assert digests({"one": states[0]}) == digests({"one": torch.zeros(8)[::2]})
    assert digests({"one": 1.0}) != digests({"one": 1})


def test_sums_of_more_words_than_fit_at_once_know_their_places() -> None:
    tensor = as_bytes(torch.arange(50, dtype=torch.int32))
    assert sums(tensor, at_once=7) == sums(tensor)
