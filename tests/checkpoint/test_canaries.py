"""Retention removes only checkpoints of its run; canaries elsewhere stay."""

import random
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mltrain.checkpoint import retention
from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.policies import Best, Budget, EveryNth, Latest, Named, Pinned, Younger
from mltrain.checkpoint.retention import Policy
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import StorageError
from tests.support.places import Place
from tests.support.runs import RUN_ID, FolderRun, manifest_of

ONE = "step-000000001-a01"
CANARIES = [
    "canary",
    f"checkpoints/{ONE}/manifest.json",
    f"other/artifacts/checkpoints/{ONE}/manifest.json",
    f"other/artifacts/checkpoints/{ONE}/model.safetensors",
    f"artifacts2/checkpoints/{ONE}/manifest.json",
    f"artifacts/{ONE}/manifest.json",
    f"artifacts/checkpoints2/{ONE}/manifest.json",
    f"artifacts/model/checkpoints/{ONE}/model.safetensors",
    "artifacts/config.json",
    "artifacts/checkpoints.json",
    "artifacts/images/a+step+1.png",
    "artifacts/checkpoints/notes.txt",
    "artifacts/checkpoints/manifest.json",
    "artifacts/checkpoints/latest_checkpoint.pth",
    "artifacts/checkpoints/epoch_1/checkpoint.pth",
    "artifacts/checkpoints/step-1-a1/manifest.json",
    "artifacts/checkpoints/step-000000001-a1/manifest.json",
    "artifacts/checkpoints/step-000000001-a0001/manifest.json",
    f"artifacts/checkpoints/{ONE}.tmp/model.safetensors",
    f"artifacts/checkpoints/{ONE}-copy/model.safetensors",
    f"artifacts/checkpoints/{ONE} 2/model.safetensors",
    f"artifacts/checkpoints/x{ONE}/model.safetensors",
]
HOSTILE = [
    *("", ".", "..", "*", "checkpoints", "../checkpoints", f"../../other/artifacts/checkpoints/{ONE}", f"{ONE}/.."),
    *(f"{ONE}/../../config.json", f"/{ONE}", f"{ONE}\0", f"{ONE}\n", f"{ONE}.tmp", f"{ONE}-copy", "step-1-a1"),
    *("%2e%2e", "..%2f..%2fother", f"../../other/artifacts/checkpoints/{ONE}".replace("/", "%2f"), "step-000000001-a1"),
]
identities = st.builds(
    CheckpointId, attempt=st.sampled_from([1, 2, 10, 100, 1000]), step=st.integers(1, 12) | st.just(999_999_999)
)
simple: list[Policy] = [
    *(Latest(1), Latest(3), Best(1), Best(2, "loss", "max"), EveryNth(epochs=2), EveryNth(steps=3), Younger(hours=1)),
    *(
        Pinned(),
        Named((ONE,)),
        Named((f"../../other/artifacts/checkpoints/{ONE}", "")),
        Budget(gigabytes=1e-9, of=Latest(9)),
    ),
]
policies = st.recursive(
    st.sampled_from(simple),
    lambda inner: st.builds(lambda a, b, both: a & b if both else a | b, inner, inner, st.booleans()),
)
names = st.sampled_from(HOSTILE) | st.text(string.ascii_letters + "./\\%-_0123456789 \0", max_size=30)


@pytest.fixture
def canaries(place: Place) -> dict[str, bytes]:
    for path in CANARIES:
        place.beside.write(path, f"precious: {path}".encode())
    assert place.beside.all().keys() >= set(CANARIES)
    return {path: place.beside.read(path) for path in CANARIES}


def put(place: Place, manifest: Manifest) -> None:
    for name in ("model.safetensors", "state.json"):
        place.files.write(f"checkpoints/{manifest.name}/{name}", b"data")
    place.files.write(f"checkpoints/{manifest.name}/manifest.json", manifest.to_json())


def there(place: Place) -> dict[str, set[str]]:
    """Return the files of folders named like a checkpoint."""
    found: dict[str, set[str]] = {}
    for path in place.files.all():
        match = re.fullmatch(r"checkpoints/(step-\d{9}-a(?:\d{2}|[1-9]\d{2,5}))/(.+)", path)
        if match:
            found.setdefault(match[1], set()).add(match[2])
    return found


def test_only_checkpoints_of_this_run_go_whatever_the_policy(
    place: Place, canaries: dict[str, bytes], tmp_path: Path
) -> None:
    whole = {"model.safetensors", "state.json", "manifest.json"}
    went = 0

    @settings(
        max_examples=15 if place.kind in ("server", "bucket") else 60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        derandomize=place.kind in ("server", "bucket"),
    )
    @given(
        st.sets(identities, min_size=1, max_size=6),
        policies,
        st.lists(names, max_size=4),
        st.integers(0, 2**32),
        st.data(),
    )
    def whatever(ids: set[CheckpointId], policy: Policy, hostile: list[str], seed: int, data: Any) -> None:
        nonlocal went
        chance = random.Random(seed)
        for identity in ids:
            kind = chance.choice(["epoch", "step", "interrupted"])
            put(place, manifest_of(identity.step, identity.attempt, kind, metrics={"loss": chance.random()}, size=4))
        run = FolderRun(tmp_path, ordinal=1000, place=place)
        some = data.draw(st.sampled_from(sorted(identity.name for identity in ids)))
        run.pinned = dict.fromkeys([*hostile, some], "hostile")
        run.used = hostile
        place.files.write("best.json", b'{"checkpoint": "%s"}' % chance.choice([*HOSTILE, some]).encode())
        with run.manager(policy=policy, metric="loss") as manager:
            before = manager.store.survey().manifests
            removed = manager.prune()
            after = there(place)
            kept = retention.protected(before, manager.committer._pruner.context(), resumed_from=None, in_use=())
            expected = {
                r.manifest.name for r in retention.plan(before, policy, manager.committer._pruner.context(), kept)
            }
            assert {removal.manifest.name for removal in removed} == expected
            assert after == dict.fromkeys({manifest.name for manifest in before} - expected, whole)
            for name in hostile:
                if CheckpointId.parse(name) is None:
                    with pytest.raises(StorageError, match="nothing was removed"):
                        run.artifacts.remove_checkpoint(name)
            assert there(place) == after
            for manifest in manager.store.survey().manifests:
                manager.store.remove(manifest.id)
        went += len(removed)
        assert there(place) == {}
        everything = place.beside.all()
        assert {path: everything.get(path) for path in CANARIES} == canaries

    whatever()
    assert went > 10, "something has to go for this to mean anything"


def test_of_two_names_that_begin_alike_only_the_one_meant_goes(place: Place) -> None:
    for attempt in (10, 100, 1000):
        put(place, manifest_of(1, attempt, size=4))
    CheckpointStore(RUN_ID, place.opened()).remove(CheckpointId(attempt=10, step=1))
    assert there(place).keys() == {"step-000000001-a100", "step-000000001-a1000"}


def test_checkpoints_of_another_run_that_were_copied_here_are_left_alone(place: Place, tmp_path: Path) -> None:
    put(place, manifest_of(1, size=4))
    foreign = manifest_of(2, size=4).model_copy(update={"run_id": "f" * 32})
    put(place, foreign)
    run = FolderRun(tmp_path, ordinal=3, place=place)
    with run.manager(policy=Latest(1)) as manager:
        manager.save({"a": 1}, step=3)
        manager.wait()
        manager.prune()
    assert there(place).keys() == {"step-000000002-a01", "step-000000003-a03"}
