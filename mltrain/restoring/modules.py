"""Fits weights to a module and its parameter names."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mltrain.errors import StateMismatch
from mltrain.restoring.undo import UndoModule

LAZY = "lazy"
"""Value in a checkpoint for a tensor of a lazy module that no forward has used."""

_WRAPPERS = ("_orig_mod", "module")


def bare_name(key: str, wrapped: bool) -> str:
    """Return a parameter name without the prefixes of wrappers."""
    steps = [step for step in key.split(".") if step != _WRAPPERS[0]]
    return ".".join(steps[1:] if wrapped and steps[0] == _WRAPPERS[1] else steps)


def _wrapped(keys: Iterable[str]) -> bool:
    """Whether all names have the prefix of DistributedDataParallel."""
    bare = [bare_name(key, False) for key in keys]
    return bool(bare) and all(key.startswith(f"{_WRAPPERS[1]}.") for key in bare)


def names_of_parameters(parts: Mapping[str, Any]) -> dict[int, str]:
    """Return the full names of all parameters, by ``id``."""
    names: dict[int, str] = {}
    for part, module in _modules(parts):
        found = list(module.named_parameters())  # a tied parameter keeps its first name
        wrapped = _wrapped(name for name, _ in found)
        for name, parameter in found:
            names.setdefault(id(parameter), f"{part}.{bare_name(name, wrapped)}")
    return names


def _modules(parts: Mapping[str, Any]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules among the parts and in their attributes."""
    yield from ((name, part) for name, part in parts.items() if isinstance(part, nn.Module))
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            held = getattr(part, "__dict__", {})
            yield from ((f"{name}.{key}", one) for key, one in list(held.items()) if isinstance(one, nn.Module))


def fitted(weights: Mapping[str, Any], module: nn.Module, name: str = "model") -> dict[str, Any]:
    """Return ``weights`` under the names of an unchanged ``module``.

    Prefixes of ``torch.compile`` and DistributedDataParallel are added or removed as needed. If names or shapes still differ,
    the module's own ``load_state_dict`` decides: lazy modules, growing observers and modules that rename keys accept them.

    Raises:
        StateMismatch: the module does not accept the weights; has the missing, unexpected and reshaped names.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights):
        raise StateMismatch(f"the module {name!r}: expected tensors by name, got a {type(weights).__name__}")
    own = module.state_dict()
    given = spelled(weights, module, own)
    for key in given.keys() - without_lazy(given).keys():
        del given[key]
        if key in own and is_lazy(own[key]):
            given[key] = own[key]
    if given.keys() == own.keys() and all(_alike(given[key], own[key]) for key in own):
        return given
    before = UndoModule(module)
    try:
        module.load_state_dict(given)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, AssertionError, IndexError) as error:
        raise refused(name, module, error) from error
    finally:
        before.undo()
    return given


def without_lazy(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights without unused lazy tensors."""
    return {key: one for key, one in weights.items() if not (isinstance(one, str) and one == LAZY)}


def _alike(given: Any, own: Any) -> bool:
    if not isinstance(own, Tensor):
        return not isinstance(given, Tensor)
    return isinstance(given, Tensor) and not (is_lazy(own) or is_lazy(given)) and given.shape == own.shape


def spelled(weights: Mapping[str, Any], module: nn.Module, own: Iterable[str]) -> dict[str, Any]:
    """Return weights under the names of a module.

    An unknown name is put below the deepest known submodule.
    """
    theirs, ours = _wrapped(weights), _wrapped(own)
    names = {bare_name(key, ours): key for key in own}
    paths = {bare_name(f"{path}.", ours).removesuffix("."): path for path, _ in module.named_modules() if path}
    found = {}
    for key, value in weights.items():
        bare = bare_name(key, theirs)
        steps = bare.split(".")
        for cut in range(len(steps) - 1, -1, -1) if bare not in names else ():
            path = paths.get(".".join(steps[:cut]))
            if path is not None:
                names[bare] = ".".join([path, *steps[cut:]])
                break
        found[names.get(bare, bare)] = value
    return found if len(found) == len(weights) else dict(weights)


_SHAPES = re.compile(r"size mismatch for (\S+): .*?torch\.Size\(\[([\d, ]*)\]\).*?torch\.Size\(\[([\d, ]*)\]\)")


_LISTS = (
    re.compile(r"^\s*Missing key\(s\) in state_dict: (.*?)\.?\s*$", re.MULTILINE),
    re.compile(r"^\s*Unexpected key\(s\) in state_dict: (.*?)\.?\s*$", re.MULTILINE),
)


def refused(name: str, part: Any, error: Exception) -> StateMismatch:
    """Return a part's error, with names if possible."""
    if not isinstance(part, nn.Module):
        return StateMismatch(f"the part {name!r}: {type(error).__name__}: {error}")
    text = str(error)
    missing, unexpected = (
        sorted(bare_name(key, False) for line in pattern.findall(text) for key in re.findall(r'"([^"]*)"', line))
        for pattern in _LISTS
    )
    reshaped = [
        f"{bare_name(key, False)} {_dimensions(given)} here {_dimensions(own)}"
        for key, given, own in _SHAPES.findall(text)
    ]
    if not (reshaped or missing or unexpected):
        return StateMismatch(f"the module {name!r}: {type(error).__name__}: {error}")
    return StateMismatch(f"the module {name!r}", missing=missing, unexpected=unexpected, reshaped=sorted(reshaped))


def _dimensions(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number.strip())


def versions(parts: Iterable[Any]) -> list[tuple[int, int]]:
    """Return the address and in-place version of each parameter."""
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return [
        (tensor.data_ptr(), tensor._version)
        for module in modules
        for tensor in module.parameters()
        if not is_lazy(tensor)
    ]
