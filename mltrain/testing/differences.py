"""Differences of two states or two trainings, bit by bit."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Trained:
    """A training's result: final state, metric points, number of steps."""

    parts: Mapping[str, Any]
    points: Mapping[str, Mapping[int, float]]
    steps: int


def assert_same(expected: Trained, got: Trained, event: str) -> None:
    """Assert that two trainings ended bit-identical.

    Raises:
        AssertionError: metrics or parts differ; the message begins with the event and lists them.
    """
    metrics = sorted(_metric_differences(expected.points, got.points))
    parts = list(differences(expected.parts, got.parts))
    if not (metrics or parts):
        return
    lines = [f"{event} changed the training."]
    if metrics:
        lines.append(f"The first metrics that differ ({len(metrics)} in all):")
        lines += [f"  {said}" for _, said in metrics[:5]]
    if parts:
        lines.append(f"Parts of the last checkpoint that differ ({len(parts)} in all):")
        lines += [f"  {said}" for said in parts[:10]]
    lines.append(
        "Usual causes: an object that changes during training but is not in parts() of the step or state= of the Task; "
        "random numbers from a private generator; an order that depends on a set or on the time."
    )
    raise AssertionError("\n".join(lines))


def _metric_differences(
    expected: Mapping[str, Mapping[int, float]], got: Mapping[str, Mapping[int, float]]
) -> Iterator[tuple[int, str]]:
    for key in expected.keys() | got.keys():
        before, after = expected.get(key, {}), got.get(key, {})
        for step in before.keys() | after.keys():
            one, other = before.get(step), after.get(step)
            if one is None or other is None:
                yield step, f"{key} at step {step}: {'missing' if other is None else 'not expected'}"
            elif one != other and not (math.isnan(one) and math.isnan(other)):
                yield step, f"{key} at step {step}: {other!r} instead of {one!r}"


def differences(expected: Any, got: Any, path: str = "") -> Iterator[str]:
    """Yield one line per difference; compare tensors bit by bit."""
    if type(expected) is not type(got):
        yield f"{path}: {type(got).__name__} instead of {type(expected).__name__}"
    elif isinstance(expected, Mapping):
        for key in [*expected, *(key for key in got if key not in expected)]:
            inner = f"{path}.{key}" if path else str(key)
            if key not in got or key not in expected:
                yield f"{inner}: {'missing' if key not in got else 'not expected'}"
            else:
                yield from differences(expected[key], got[key], inner)
    elif isinstance(expected, (list, tuple)):
        if len(expected) != len(got):
            yield f"{path}: {len(got)} items instead of {len(expected)}"
            return
        for index, (one, other) in enumerate(zip(expected, got, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif isinstance(expected, torch.Tensor):
        yield from _tensor_differences(expected, got, path)
    elif isinstance(expected, (np.ndarray, np.generic)):
        if expected.dtype != got.dtype or expected.shape != got.shape or expected.tobytes() != got.tobytes():
            yield f"{path}: other values"
    elif expected != got and not (expected != expected and got != got):  # NaN is equal to NaN here
        yield f"{path}: {got!r:.60} instead of {expected!r:.60}"


def _tensor_differences(expected: torch.Tensor, got: torch.Tensor, path: str) -> Iterable[str]:
    if expected.dtype != got.dtype or expected.shape != got.shape:
        yield f"{path}: {got.dtype} {tuple(got.shape)} instead of {expected.dtype} {tuple(expected.shape)}"
        return
    plain = (one if one.layout is torch.strided else one.to_dense() for one in (expected, got))
    one, other = (tensor.contiguous().flatten().view(torch.uint8) for tensor in plain)
    if not one.equal(other):
        count = int((one.view(-1, expected.itemsize) != other.view(-1, expected.itemsize)).any(1).sum())
        yield f"{path}: {count} of {expected.numel()} values differ"
