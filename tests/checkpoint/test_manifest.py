"""A manifest describes a checkpoint, frozen and as JSON."""

import hashlib
import json
import math
import string
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mltrain.checkpoint.manifest import (
    MAX_BYTES,
    CheckpointId,
    Manifest,
    refuse_names,
)
from mltrain.errors import DamagedCheckpoint, UsageError
from tests.support.lines import identities, manifests
from tests.support.runs import RUN_ID, manifest_of


def a_manifest() -> Manifest:
    return manifest_of(
        420, 3, metrics={"val/loss": 0.25, "odd": math.nan}, size=10, parent=CheckpointId(attempt=3, step=419)
    )


def sealed(change: dict[str, Any], manifest: Manifest | None = None) -> bytes:
    """Return a manifest with other entries and a valid seal."""
    raw = json.loads((manifest or a_manifest()).to_json())
    del raw["sha256"]
    body = json.dumps({**raw, **change}, indent=1).encode().removesuffix(b"\n}")
    return body + b',\n "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}'


@given(identities)
def test_a_directory_name_spells_its_checkpoint(identity: CheckpointId) -> None:
    assert CheckpointId.parse(identity.name) == identity


@given(st.text(string.digits + "step-a.", max_size=22) | st.from_regex(r"step-\d{8,10}-a\d{1,7}", fullmatch=True))
def test_a_name_that_is_read_is_written_the_same(name: str) -> None:
    identity = CheckpointId.parse(name)
    assert identity is None or identity.name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "step-000000001-a00",
        "step-000000001-a1",
        "step-000000001-a001",
        "step-1-a01",
        "step-0000000001-a01",
        "step-000000001-a01 ",
        "step-000000001-a01\n",
        "step-000000001-a01.0a1b2c3d.tmp",
        "../step-000000001-a01",
        "step-000000001-a01/..",
        "Step-000000001-a01",
        "step-००००००००१-a01",
        "step-000000001-a01\0",
        "step--00000001-a01",
    ],
)
def test_what_is_almost_a_directory_name_is_none(name: str) -> None:
    assert CheckpointId.parse(name) is None


@given(identities, identities)
def test_a_later_attempt_is_later_whatever_its_step(one: CheckpointId, other: CheckpointId) -> None:
    if one.attempt != other.attempt:
        assert (one.order < other.order) == (one.attempt < other.attempt)


@settings(max_examples=100, deadline=None)
@given(manifests)
def test_a_manifest_survives_json(manifest: Manifest) -> None:
    back = Manifest.from_json(manifest.to_json(), run_id=RUN_ID, name=manifest.name)
    assert back.model_dump_json() == manifest.model_dump_json()


@settings(max_examples=20, deadline=None)
@given(manifests)
def test_a_manifest_is_json_for_others(manifest: Manifest) -> None:
    raw = json.loads(manifest.to_json())
    assert (raw["id"], raw["kind"]) == (manifest.id.model_dump(), manifest.kind)


def test_a_manifest_cut_anywhere_is_damage() -> None:
    content = a_manifest().to_json()
    for length in range(len(content)):
        with pytest.raises(DamagedCheckpoint):
            Manifest.from_json(content[:length])


def test_a_manifest_with_any_bit_flipped_is_damage() -> None:
    content = a_manifest().to_json()
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            with pytest.raises(DamagedCheckpoint):
                Manifest.from_json(bytes(changed))


def example() -> bytes:
    pending = [{"key": "ä/ö", "step": -1, "value": 0.5, "timestamp": 1}]
    named = {"metrics": {"loss": math.nan}, "code": {"commit": 'a "quoted" \\ ü'}, "pending": pending}
    return manifest_of(3, size=10, **named).to_json()


def refused(content: bytes) -> DamagedCheckpoint:
    with pytest.raises(DamagedCheckpoint) as caught:
        Manifest.from_json(content)
    return caught.value


def test_a_manifest_cut_anywhere_tells_that_its_end_is_missing() -> None:
    content = example()
    assert [length for length in range(len(content)) if not refused(content[:length]).torn] == []


def test_a_manifest_with_any_bit_flipped_does_not_pass_for_one_that_was_never_finished() -> None:
    content = example()
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            assert not refused(bytes(changed)).torn, (place, bit)


@pytest.mark.parametrize("content", [bytes(100), b"[]", b"null", b"{}", b"\xff", b"<html>"])
def test_what_is_no_manifest_at_all_is_not_an_unfinished_one(content: bytes) -> None:
    assert not refused(content).torn


@pytest.mark.parametrize("after", [b"\n", b" ", b"\0", b"{}"])
def test_a_manifest_that_was_lengthened_is_damage(after: bytes) -> None:
    with pytest.raises(DamagedCheckpoint):
        Manifest.from_json(a_manifest().to_json() + after)


def test_the_way_hostile_manifests_are_made_here_is_accepted_when_nothing_is_hostile() -> None:
    assert Manifest.from_json(sealed({"epoch": 7})).epoch == 7


HOSTILE: dict[str, dict[str, Any]] = {
    "a future schema": {"schema_version": 2},
    "a schema that is true": {"schema_version": True},
    "a schema that is a fraction": {"schema_version": 1.0},
    "a run that is a number": {"run_id": 5},
    "an unknown key": {"run": "os.system"},
    "an unknown kind": {"kind": "best"},
    "a step below zero": {"id": {"attempt": 1, "step": -1}},
    "a step beyond all": {"id": {"attempt": 1, "step": 10**30}},
    "a step that is text": {"id": {"attempt": 1, "step": "420"}},
    "an attempt 0": {"id": {"attempt": 0, "step": 1}},
    "an epoch that is a fraction": {"epoch": 1.5},
    "an epoch that is true": {"epoch": True},
    "metrics that are text": {"metrics": {"a": "high"}},
    "metrics that are a list": {"metrics": [1]},
    "a file above": {"files": {"../model.safetensors": {"size": 1, "sha256": "0" * 64}}},
    "a file elsewhere": {"files": {"/etc/passwd": {"size": 1, "sha256": "0" * 64}}},
    "a file in a folder": {"files": {"a/b.json": {"size": 1, "sha256": "0" * 64}}},
    "a file with NUL": {"files": {"a\0.json": {"size": 1, "sha256": "0" * 64}}},
    "a file with a line feed": {"files": {"a.json\n": {"size": 1, "sha256": "0" * 64}}},
    "a file that is a pickle": {"files": {"model.pkl": {"size": 1, "sha256": "0" * 64}}},
    "a file of a huge size": {"files": {"model.safetensors": {"size": 2**80, "sha256": "0" * 64}}},
    "a file of a negative size": {"files": {"model.safetensors": {"size": -1, "sha256": "0" * 64}}},
    "a digest that is none": {"files": {"model.safetensors": {"size": 1, "sha256": "0" * 63}}},
    "a tensor of a negative shape": {
        "tensors": {"w": {"file": "model.safetensors", "dtype": "float32", "shape": [-1]}}
    },
    "a tensor in a file above": {"tensors": {"w": {"file": "../x.safetensors", "dtype": "float32", "shape": [1]}}},
    "a time without a zone": {"created": "2026-01-01T00:00:00"},
    "a time that is none": {"created": "yesterday"},
    "a missing time": {"created": None},
    "a point at a time below zero": {"pending": [{"key": "a", "step": 1, "value": 1.0, "timestamp": -5}]},
    "a parent that is text": {"parent": "step-000000001-a01"},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_manifest_is_damage(change: dict[str, Any]) -> None:
    with pytest.raises(DamagedCheckpoint) as caught:
        Manifest.from_json(sealed(change), run_id=RUN_ID, name=a_manifest().name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"1", b'"manifest"', b"{}", b"[" * 10**6, b'{"a":' * 10**5, b"\xff\xfe{}", b"9" * 5000],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_manifest_at_all_is_damage(content: bytes) -> None:
    with pytest.raises(DamagedCheckpoint):
        Manifest.from_json(content)


def test_a_manifest_too_large_to_be_one_is_not_even_parsed() -> None:
    with pytest.raises(DamagedCheckpoint, match=f"at most {MAX_BYTES}"):
        Manifest.from_json(b"[" * (MAX_BYTES + 1))


def test_a_manifest_of_another_place_is_damage() -> None:
    content = a_manifest().to_json()
    with pytest.raises(DamagedCheckpoint, match="moved or swapped"):
        Manifest.from_json(content, run_id="f" * 32)
    with pytest.raises(DamagedCheckpoint, match="moved or swapped"):
        Manifest.from_json(content, name="step-000000421-a03")


def test_a_newer_schema_is_named_in_the_message() -> None:
    with pytest.raises(DamagedCheckpoint, match="schema 2; this version of mltrain reads schema 1"):
        Manifest.from_json(sealed({"schema_version": 2}))


def test_a_manifest_is_frozen() -> None:
    with pytest.raises(ValidationError):
        a_manifest().epoch = 3  # type: ignore[misc]


def test_a_manifest_says_its_title_and_size() -> None:
    titles = [manifest_of(7, kind=kind, epoch=2).title for kind in ("epoch", "step", "interrupted", "imported")]
    assert titles == ["epoch 2", "step 7", "interrupted at step 7", "imported 7"]
    assert manifest_of(1, size=123).size == 123


def test_the_time_of_writing_has_a_zone() -> None:
    with pytest.raises(ValidationError):
        manifest_of(1, created=datetime(2026, 1, 1))


@pytest.mark.parametrize("name", ["params.json", "history.csv", "a-b_c1.safetensors"])
def test_a_plain_name_can_be_a_further_file(name: str) -> None:
    refuse_names([name])


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "a.txt",
            "A.json",
            "../a.json",
            "/a.json",
            "a/b.json",
            "a.json\n",
            "a.json\0",
            "model.json",
            "state.json",
        ),
        *("manifest.json", "model-2.safetensors", ".json", "a" * 65 + ".json", "ä.json", "a.json/.."),
    ],
)
def test_what_no_file_of_a_checkpoint_may_be_called_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name an extra file"):
        refuse_names(["a.json", name])
