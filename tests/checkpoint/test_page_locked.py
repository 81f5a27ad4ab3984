"""Page-locked memory, on a driver that is not there."""

import gc

import pytest
import torch

from mltrain.checkpoint.host_memory import HostBuffers
from mltrain.checkpoint.page_locked import LARGE, page_locked
from tests.support.fake_cuda import Cuda, OnCuda


@pytest.mark.parametrize("refuses", [False, True])
def test_memory_is_registered_while_it_is_held(refuses: bool) -> None:
    cuda = Cuda()
    cuda.driver.refuses = refuses
    like = torch.empty(3, LARGE, dtype=torch.float16).t()
    memory = page_locked(like, cuda)
    assert (memory.dtype, memory.shape, memory.stride()) == (like.dtype, like.shape, like.stride())
    assert memory.untyped_storage().nbytes() == like.nbytes
    assert not memory.storage_offset()
    view = memory.copy_(torch.ones_like(like))[1:]
    del memory
    gc.collect()
    assert len(cuda.driver.registered) == (not refuses)
    assert all(size % 4096 == address % 4096 == 0 for address, size in cuda.driver.registered.items())
    assert view.all()
    del view
    gc.collect()
    assert cuda.driver.registered == {}


def test_only_memory_for_tensors_of_a_device_is_page_locked() -> None:
    cuda = Cuda()
    buffers = HostBuffers(cuda, pin=True)
    here, there = torch.ones(LARGE), torch.ones(LARGE).as_subclass(OnCuda)
    assert buffers.copy({"here": here})["here"].all()
    assert cuda.driver.registered == {}
    kept = buffers.copy({"there": there})
    assert kept["there"].all()
    assert len(cuda.driver.registered) == 1
    del kept, buffers
    gc.collect()
    assert cuda.driver.registered == {}


def test_memory_is_page_locked_before_the_first_copy() -> None:
    cuda = Cuda()
    buffers = HostBuffers(cuda, pin=True)
    live = {"here": torch.ones(LARGE), "there": torch.ones(LARGE).as_subclass(OnCuda)}
    buffers.prepare(live)
    buffers._preparing.join()  # type: ignore[union-attr]
    (address,) = cuda.driver.registered
    assert buffers.copy(live)["there"].data_ptr() == address
