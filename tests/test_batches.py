"""The order of batches and the random numbers behind it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.batches import mixed
from mltrain.data import ResumableLoader


def test_the_weights_of_the_parts_of_a_batch_sum_to_one() -> None:
    loaders = [ResumableLoader(range(44), 8, seed=3) for _ in range(5)]
    for rank, one in enumerate(loaders):
        one.divide(rank, 5)
    weights = [[one.weight for _ in one] for one in loaders]
    assert [sum(of_batch) for of_batch in zip(*weights, strict=True)] == pytest.approx([1.0] * 6)
    assert weights[0][-1] == 0.0  # of the last four items for five processes


@settings(max_examples=200)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
def test_mixed_numbers_are_64_bits_and_depend_on_each(numbers: list[int]) -> None:
    value = mixed(*numbers)
    assert 0 <= value < 2**64
    for place in range(len(numbers)):
        other = list(numbers)
        other[place] ^= 1
        assert mixed(*other) != value


def test_neighbouring_numbers_are_well_spread() -> None:
    differing = [bin(mixed(seed, 0, 0) ^ mixed(seed + 1, 0, 0)).count("1") for seed in range(200)]
    assert 28 < sum(differing) / len(differing) < 36
