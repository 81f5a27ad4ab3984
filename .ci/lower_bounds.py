"""Prints the lower bound of every dependency in pyproject.toml as a constraint for pip.

A bound that the registries do not have any more has to be raised here and there: pip names it.
"""

import re
import tomllib
from pathlib import Path

_BOUND = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?>=([0-9.]+)")

if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for wanted in (*project["dependencies"], *project["optional-dependencies"]["projects"]):
        name, bound = _BOUND.fullmatch(wanted).groups()
        print(f"{name}=={bound}.*" if bound.count(".") < 2 else f"{name}=={bound}")
