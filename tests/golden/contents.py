"""What the golden checkpoints hold: values of every kind that a state may have, the same in every release."""

import collections
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

WEIGHTS = {
    "layer.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "layer.bias": torch.tensor([0.5, -1, 3]),
}


def everything() -> dict[str, Any]:
    """Return one value of each kind."""
    shared = torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)
    return {
        "model": dict(WEIGHTS),
        "tensors": {
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(7, dtype=torch.int64),
            "bool": torch.tensor([True, False]),
            "half": torch.tensor([65504.0, -0.0], dtype=torch.float16),
            "eight": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn),
            "complex": torch.tensor([1 + 2j, -3j]),
            "unsigned": torch.tensor([0, 2**16 - 1], dtype=torch.uint16),
            "transposed": torch.arange(6.0).reshape(2, 3).t(),
            "sparse": torch.eye(3).to_sparse(),
            "one": shared,
            "the same": shared,
        },
        "plain": {
            "none": None,
            "floats": [float("inf"), -0.0, 0.1],
            "nan": float("nan"),
            "large": 2**100,
            "complex": 1 - 1j,
            "text": 'Umlaut ö, emoji 🙂, quote "',
            "bytes": b"\x00\xff",
            "tuple": (1, (2, ())),
            "set": {1, 2},
            "keys": {1: "int", "1": "str", None: 0},
            "ordered": collections.OrderedDict(b=1, a=2),
            "size": torch.Size([2, 3]),
            "dtype": torch.bfloat16,
            "device": torch.device("cpu"),
            "time": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
            "path": Path("a/b"),
            "numpy": np.arange(4, dtype=np.int16),
            "scalar": np.float32(0.25),
        },
    }
