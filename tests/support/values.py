"""Values of states, as hypothesis strategies, and their bitwise equality."""

import collections
import datetime
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
]
"""The dtypes that a training meets."""

Pair = collections.namedtuple("Pair", "left right")


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Return a tensor of random bits: NaNs with payloads, infinities, denormal numbers and all."""
    numel = int(np.prod(shape, dtype=np.int64))
    highest = 2 if dtype is torch.bool else 256
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, highest, (numel * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return bits.view(dtype).reshape(shape)


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
seeds = st.integers(0, 2**32)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of every dtype and layout, also 0-d and empty."""
    tensor = random_tensor(draw(st.sampled_from(DTYPES)), draw(shapes), draw(seeds))
    match draw(st.sampled_from(["as it is", "transposed", "with gaps", "inside another", "expanded", "parameter"])):
        case "transposed":
            return tensor.permute(tuple(reversed(range(tensor.dim()))))
        case "with gaps" if tensor.dim():
            return tensor[..., ::2]
        case "inside another" if tensor.dim() and tensor.shape[0] > 2:
            return tensor[1:-1]
        case "expanded":
            return tensor.unsqueeze(0).expand(3, *tensor.shape)
        case "parameter" if tensor.is_floating_point() or tensor.is_complex():
            return torch.nn.Parameter(tensor)
    return tensor


numpy_dtypes = st.sampled_from(["<f8", "<f4", "<f2", ">f8", "<i8", "|i1", ">u2", "|b1", "<c8", "<U3", "|S2", "<M8[ms]"])


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    dtype, shape = np.dtype(draw(numpy_dtypes)), draw(shapes)
    numbers = np.random.default_rng(draw(seeds)).integers(0, 2, shape)
    array = np.asarray(numbers).astype(dtype)
    return array.T if draw(st.booleans()) else array


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
keys = (
    st.text(max_size=6)
    | st.integers()
    | st.floats(allow_nan=False)
    | st.booleans()
    | st.none()
    | st.tuples(st.text(max_size=2), st.integers())
    | st.frozensets(st.integers(), max_size=3)
)
zones = st.none() | st.integers(-720, 720).map(lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes)))
others = (
    st.binary(min_size=1020, max_size=1030)
    | st.binary(max_size=4).map(bytearray)
    | st.sets(st.integers() | st.text(max_size=3), max_size=4)
    | st.frozensets(st.integers(), max_size=4)
    | shapes.map(torch.Size)
    | st.sampled_from(DTYPES)
    | st.sampled_from(["cpu", "cuda:1", "meta"]).map(torch.device)
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.timedeltas()
    | st.lists(st.text(string.ascii_letters, min_size=1, max_size=4), max_size=3).map(lambda parts: Path(*parts))
    | st.floats(width=32).map(np.float32)
    | st.integers(-(2**63), 2**63 - 1).map(np.int64)
    | st.booleans().map(np.bool_)
    | st.text(string.printable, max_size=4).map(np.str_)
    | st.complex_numbers().map(np.complex128)
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(inner, max_size=3)
    mapping = st.dictionaries(keys, inner, max_size=3)
    return (
        few
        | few.map(tuple)
        | st.builds(collections.deque, few, st.none() | st.integers(0, 4))
        | st.builds(Pair, inner, inner)
        | mapping
        | mapping.map(collections.OrderedDict)
        | mapping.map(lambda entries: collections.defaultdict(list, entries))
        | st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=3).map(collections.Counter)
    )


values = st.recursive(plain | others | tensors() | arrays(), _nested, max_leaves=8)
"""Everything that a state may hold, nested."""

states = st.dictionaries(st.text(max_size=6), values, max_size=4)
