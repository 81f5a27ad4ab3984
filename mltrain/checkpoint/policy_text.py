"""Policies as text, in a configuration, on the command line, and in the tag of a run."""

import ast
import logging
from importlib import metadata
from typing import Any

from mltrain.checkpoint import policies as policies  # defines those that a text may name
from mltrain.checkpoint.retention import Policy
from mltrain.errors import ConfigError

log = logging.getLogger(__name__)

GROUP = "mltrain.policies"
"""The entry points by which a package registers policies of its own: name of the class to ``module:class``."""


def parse(text: str) -> Policy:
    """Return the policy that an expression spells: names of policies, ``|``, ``&``, parentheses.

    Raises:
        ConfigError: the expression is not one; the message points at the word.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        column = (getattr(error, "offset", None) or 1) - 1
        raise _wrong(text, column, "this is not an expression") from None
    try:
        policy = _evaluated(tree, text)
    except RecursionError:
        raise _wrong(text[:200], 0, "it is too long") from None
    if not hasattr(policy, "keep"):
        raise _wrong(text, 0, "a policy was expected")
    return policy  # type: ignore[no-any-return]


def _evaluated(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitOr, ast.BitAnd)):
        sides = [_evaluated(side, text) for side in (node.left, node.right)]
        for side, place in zip(sides, (node.left, node.right), strict=True):
            if not hasattr(side, "keep"):
                raise _wrong(text, place.col_offset, "a policy was expected on both sides of | and &")
        return sides[0] | sides[1] if isinstance(node.op, ast.BitOr) else sides[0] & sides[1]
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str)):
        return node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        make = _policy_called(node.func.id)
        if make is None:
            raise _wrong(text, node.col_offset, f"there is no policy {node.func.id}")
        positional = [_evaluated(argument, text) for argument in node.args]
        named = {str(keyword.arg): _evaluated(keyword.value, text) for keyword in node.keywords}
        try:
            return make.from_arguments(*positional, **named)
        except (TypeError, ConfigError) as error:
            raise _wrong(text, node.col_offset, str(error)) from None
    raise _wrong(text, node.col_offset, "a policy was expected")


def _policy_called(name: str) -> type[Policy] | None:
    """Return the class of a policy: one that was defined, or one that an installed package registers."""
    if name in Policy.known:
        return Policy.known[name]
    for entry in metadata.entry_points(group=GROUP, name=name):
        found = entry.load()
        if isinstance(found, type) and issubclass(found, Policy):
            return found
        log.warning("The entry point %s of the group %s names no subclass of mltrain.Policy.", entry.value, GROUP)
    return None


def _wrong(text: str, column: int, what: str) -> ConfigError:
    examples = {name: known.example or f"{name}(…)" for name, known in Policy.known.items()}
    registered = {name: f"{name}(…)" for name in metadata.entry_points(group=GROUP).names}
    return ConfigError(
        f"The retention policy cannot be read: {what}.\n  {text.strip()}\n  {' ' * column}^\n"
        f"Known: {', '.join((registered | examples).values())}, joined by | and &."
    )
