"""Generators are set aside and restored exactly. Whatever was drawn inside and outside."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.checkpoint.codec import decode
from mltrain.rng import Aside, Rng, own_rng, seed_cheaply, seed_everything
from tests.support.encoded import files_of
from tests.support.equality import identical
from tests.support.fake_cuda import Cuda
from tests.support.parts import draws

DRAWS = st.lists(st.sampled_from(["normal", "uniform", "integers", "choice", "seed", "torch", "python"]), max_size=5)


def draw(kinds: list[str]) -> list[float]:
    made = {
        "normal": lambda: np.random.randn(),
        "uniform": lambda: np.random.rand(),
        "integers": lambda: np.random.randint(1000),
        "choice": lambda: np.random.choice(5),
        "seed": lambda: seed_cheaply(12345678901),
        "torch": lambda: float(torch.rand(())),
        "python": lambda: random.gauss(0, 1),
    }
    return [made[kind]() or 0.0 for kind in kinds]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(DRAWS, DRAWS), min_size=1, max_size=6))
def test_what_is_drawn_inside_is_not_seen_outside(rounds: list[tuple[list[str], list[str]]]) -> None:
    """An odd number of normal deviates leaves half a pair. NumPy's legacy generator and Python's keep it."""
    seed_everything(3)
    expected = [draw(outside) for outside, _ in rounds]
    last = Rng().state_dict()
    seed_everything(3)
    aside = Aside()
    got = []
    for outside, inside in rounds:
        got.append(draw(outside))
        with aside:
            draw(inside)
    assert got == expected
    assert identical(Rng().state_dict(), last)


def test_another_bit_generator_of_numpy_is_set_aside_too() -> None:
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(7))
        expected = np.random.RandomState(np.random.PCG64(7)).rand(4).tolist()
        aside, got = Aside(), [np.random.rand()]
        for _ in range(3):
            with aside:
                np.random.rand(5)
            got.append(np.random.rand())
        assert got == expected
    finally:
        np.random.set_bit_generator(before)


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_a_seed_decides_what_all_three_draw(seed: int) -> None:
    drawn = []
    for _ in range(2):
        seed_cheaply(seed)
        drawn.append(draw(["normal", "uniform", "torch", "python"]))
    assert drawn[0] == drawn[1]


def test_all_generators_go_on_where_they_were() -> None:
    seed_everything(3)
    draws()  # leaves half of a pair of normal deviates in Python's and NumPy's generators
    before = Rng().state_dict()
    expected = [draws() for _ in range(3)]
    Rng().load_state_dict(before)
    assert [draws() for _ in range(3)] == expected


def test_the_state_of_all_generators_survives_the_files() -> None:
    seed_everything(4)
    draws()
    files = files_of({"rng": Rng().state_dict()})
    expected = draws()
    Rng().load_state_dict(decode(files)["rng"])
    assert draws() == expected


def test_one_seed_seeds_all_generators() -> None:
    seed_everything(5)
    expected = draws()
    seed_everything(6)
    assert draws() != expected
    seed_everything(5)
    assert draws() == expected


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_a_block_may_draw_without_the_training_noticing(error: type[Exception] | None) -> None:
    def block() -> list[float]:
        with own_rng(7):
            drawn = draws()
            if error is not None:
                raise error
        return drawn

    seed_everything(1)
    expected = draws()
    seed_everything(1)
    if error is None:
        assert block() == block()
    else:
        with pytest.raises(error):
            block()
    assert draws() == expected


def test_generators_of_all_devices_go_back_and_the_one_that_computes_comes_first() -> None:
    state = Rng(Cuda(current=1)).state_dict()
    same, fewer, more = Cuda(current=1), Cuda(devices=1), Cuda(current=2, devices=3)
    for cuda in (same, fewer, more):
        cuda.states = [torch.tensor([9], dtype=torch.uint8) for _ in cuda.states]
        Rng(cuda).load_state_dict(state)
    assert [int(s) for s in same.states] == [0, 1]
    assert [int(s) for s in fewer.states] == [1]  # it trained on the second device, and goes on with its generator
    assert [int(s) for s in more.states] == [0, 1, 1]


def test_generators_of_checkpoints_without_the_device_go_back_by_number() -> None:
    state = Rng(Cuda()).state_dict()
    del state["cuda_device"]
    cuda = Cuda(current=1)
    Rng(cuda).load_state_dict({**state, "cuda": [torch.tensor([7], dtype=torch.uint8)] * 2})
    assert [int(s) for s in cuda.states] == [7, 7]
