"""Manifests of any content, for hypothesis."""

from datetime import UTC

from hypothesis import strategies as st

from mltrain.checkpoint.manifest import (
    CheckpointId,
    Point,
)
from tests.support.runs import manifest_of

identities = st.builds(CheckpointId, attempt=st.integers(1, 999_999), step=st.integers(0, 10**9 - 1))


numbers = st.floats() | st.integers(-5, 5).map(float)


manifests = st.builds(
    manifest_of,
    step=st.integers(0, 10**9 - 1),
    attempt=st.integers(1, 999_999),
    kind=st.sampled_from(["epoch", "step", "interrupted", "imported"]),
    epoch=st.integers(0, 10**6),
    parent=st.none() | identities,
    ancestry=st.lists(identities, max_size=3),
    metrics=st.dictionaries(st.text(max_size=8), numbers, max_size=4),
    best=st.booleans(),
    size=st.integers(0, 2**60),
    parts=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    created=st.datetimes(timezones=st.just(UTC)),
    versions=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
    pending=st.lists(
        st.builds(Point, key=st.text(max_size=8), step=st.integers(0, 9), value=numbers, timestamp=st.integers(0, 9)),
        max_size=2,
    ).map(tuple),
)
