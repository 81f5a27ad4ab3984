"""Prints each dependency's lower bound as a constraint for pip.

python .ci/lower_bounds.py [NAME==VERSION ...]

Where a registry does not have a bound, give the version that it has: torch==2.13.0.
"""

import re
import sys
import tomllib
from pathlib import Path

_BOUND = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?>=([0-9.]+)")

if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    instead = dict(word.split("==") for word in sys.argv[1:])
    for wanted in (*project["dependencies"], *project["optional-dependencies"]["projects"]):
        name, bound = _BOUND.fullmatch(wanted).groups()
        bound = instead.get(name, bound)
        print(f"{name}=={bound}.*" if bound.count(".") < 2 else f"{name}=={bound}")
