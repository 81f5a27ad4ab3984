"""Assertions and test doubles for tests of users' own trainers.

>>> from mltrain.testing import assert_resumes_exactly
>>> def test_my_project_resumes_exactly():
...     assert_resumes_exactly("my_project.py", {"epochs": 2})

:func:`assert_resumes_exactly` interrupts within one process and takes seconds; :func:`assert_survives_kills` kills real
processes with SIGKILL, resumes them from a tracking store, and starts Python for each.
"""

from mltrain.testing.differences import differences
from mltrain.testing.doubles import Kept, MemorySaver, MemoryTracker, StopAt
from mltrain.testing.killing import assert_survives_kills
from mltrain.testing.resuming import assert_resumes_exactly

__all__ = [
    "Kept",
    "MemorySaver",
    "MemoryTracker",
    "StopAt",
    "assert_resumes_exactly",
    "assert_survives_kills",
    "differences",
]
