"""Groups of names that a split does not divide."""

import re


def group_of(name: str, expression: str | None) -> str | None:
    """Return the group of a name, by a regular expression.

    It is the match, or its first group in parentheses if that takes part in it. If ``expression`` is ``None``, every name is
    its own group. Returns ``None`` for a name without a match.
    """
    if expression is None:
        return name
    found = re.search(expression, name)
    return found and (found[1] if found.re.groups and found[1] is not None else found[0])
