"""Checkpoints in pieces: what ranks write, and the whole files that come out, without any process group."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mltrain.checkpoint.codec import decode, encode
from mltrain.checkpoint.manifest import SHARDED_SCHEMA, CheckpointId, FileEntry, Manifest, now, whole_manifest
from mltrain.checkpoint.publishing import PartsMissing, publish
from mltrain.checkpoint.shards import Assembly, Part, Piece, write_part
from mltrain.checkpoint.snapshot import HostBuffers, Snapshot, snapshot
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import DamagedCheckpoint, RunHeld, StorageError
from mltrain.store.artifacts import sha256_of
from mltrain.store.durable import write_file
from mltrain.store.local import LocalArtifacts
from mltrain.testing import differences
from tests.support.places import Place, behind

GOLDEN = Path(__file__).parents[1] / "golden" / "sharded"
NAME = CheckpointId(attempt=1, step=5)


def state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(5, 4, generator=generator)
    return {
        "model": {
            "a.weight": weight,
            "b.weight": weight,
            "c": torch.randn(7, generator=generator),
            "n": torch.tensor(3),
        },
        "optimizer": {"state": {0: {"step": torch.tensor(2.0), "half": torch.ones(3, 3, dtype=torch.bfloat16)}}},
        "progress": {"step": 5},
    }


def cut(name: str, whole: Tensor, rank: int, ranks: int) -> Piece | None:
    """Cut along the last dimension into non-contiguous pieces. The first rank may have nothing."""
    begins = [whole.shape[-1] * rank // ranks, whole.shape[-1] * (rank + 1) // ranks]
    if begins[0] == begins[1]:
        return None
    offsets = (*[0] * (whole.dim() - 1), begins[0])
    return Piece(whole[..., begins[0] : begins[1]].contiguous(), offsets, tuple(whole.shape))


def write(folder: Path, ranks: int) -> tuple[Snapshot, Manifest]:
    """Write a checkpoint of ``size`` ranks like rank 0's committer."""
    whole = snapshot(state(), HostBuffers())
    sharded = {name for name, tensor in whole.tensors.items() if tensor.dim()}
    plain = {name: tensor for name, tensor in whole.tensors.items() if name not in sharded}
    encoded = encode(Snapshot(whole.tree, plain, whole.weights, whole.parts))
    folder.mkdir(parents=True)
    files, shards = {}, {}
    for file in encoded.files:
        size, digest = write_file(folder / file.name, file.content)
        files[file.name] = FileEntry(size=size, sha256=digest)
    for rank in range(ranks):
        pieces = {name: cut(name, whole.tensors[name], rank, ranks) for name in sorted(sharded)}
        own = {name: piece for name, piece in pieces.items() if piece is not None}
        name, files[name], shards[name] = write_part(folder, rank, own, whole.weights, largest_file=40)
    manifest = Manifest(
        schema_version=SHARDED_SCHEMA,
        run_id="r",
        id=NAME,
        kind="step",
        epoch=0,
        parent=None,
        parts=whole.parts,
        files=files,
        tensors=dict(encoded.tensors),
        aliases=dict(encoded.aliases),
        shards=shards,
        created=now(),
    )
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return whole, manifest


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / NAME.name


def store_of(place: Path) -> CheckpointStore:
    return CheckpointStore("r", LocalArtifacts(place.parents[1]))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_whole_files_are_those_that_one_process_writes(place: Path, ranks: int) -> None:
    whole, manifest = write(place, ranks)
    store = store_of(place)
    read = store.manifest(NAME)
    assert read == manifest
    assert manifest.size == sum(file.stat().st_size for file in place.iterdir() if file.name != "manifest.json")
    split = [file for file in place.iterdir() if file.name.startswith("model-r00000-")]
    assert len(split) > 1 or ranks == 3  # at 40 bytes, which a third of the weights does not exceed
    files = store.fetch(manifest, only=lambda name: True)
    expected = {file.name: b"".join(file.content) for file in encode(whole).files}
    assert {name: bytes(content) for name, content in files.items()} == expected
    assert store.sizes(manifest) == {name: len(content) for name, content in expected.items()}
    assert list(differences(state(), store.load(manifest))) == []
    assert store.problems(manifest) == []
    made = {name: FileEntry(size=len(one), sha256=sha256_of(one)) for name, one in files.items()}
    alone = whole_manifest(manifest, made)
    assert (alone.schema_version, alone.shards) == (1, {})
    assert alone.files["model.safetensors"].size == len(expected["model.safetensors"])


def test_torch_reads_the_weights_itself(place: Path, tmp_path: Path) -> None:
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    write(place, 2)
    only = tmp_path / "model"
    only.mkdir()
    for file in place.glob("model-r*.safetensors"):
        (only / file.name).write_bytes(file.read_bytes())
    weights = {"a.weight": torch.zeros(5, 4), "c": torch.zeros(7)}
    with pytest.warns(UserWarning, match="load in a single process"):
        load(weights, storage_reader=HuggingFaceStorageReader(str(only)), no_dist=True)
    assert all(torch.equal(weights[name], state()["model"][name]) for name in weights)


@pytest.mark.parametrize("file", ["state-r00001.safetensors", "model-r00000-00.safetensors", "part-r00001.json"])
@pytest.mark.parametrize("how", ["flipped", "missing", "short"])
def test_a_damaged_piece_is_found(place: Path, file: str, how: str) -> None:
    _, manifest = write(place, 2)
    victim = place / file
    assert victim.is_file(), sorted(one.name for one in place.iterdir())
    content = bytearray(victim.read_bytes())
    content[-2] ^= 1
    victim.unlink()
    if how != "missing":
        victim.write_bytes(content if how == "flipped" else content[:-3])
    store = store_of(place)
    assert store.problems(manifest)
    with pytest.raises(DamagedCheckpoint):
        store.load(manifest)


def test_pieces_that_do_not_make_up_a_tensor_are_refused(place: Path) -> None:
    _, manifest = write(place, 2)
    lacking = manifest.model_copy(
        update={"shards": {name: size for name, size in manifest.shards.items() if "1" not in name}}
    )
    with pytest.raises(DamagedCheckpoint, match="do not fill the whole"):
        store_of(place).load(lacking)


def test_a_part_file_names_no_file_elsewhere() -> None:
    entry = {"size": 1, "sha256": "0" * 64}
    content = json.dumps({"rank": 0, "weights": None, "files": {"../../model.safetensors": entry}, "pieces": {}})
    with pytest.raises(DamagedCheckpoint, match="String should match pattern"):
        Part.from_json(content.encode(), "part-r00000.json")


def test_a_sharded_checkpoint_of_before_is_read_as_it_was_written() -> None:
    (folder,) = GOLDEN.glob("step-*")
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes(), name=folder.name)
    assert manifest.schema_version == SHARDED_SCHEMA

    def read(name: str, entry: FileEntry) -> bytearray:
        content = bytearray((folder / name).read_bytes())
        assert hashlib.sha256(content).hexdigest() == entry.sha256
        return content

    assembly = Assembly(manifest, read)
    files: Mapping[str, bytearray] = {name: assembly.content(name) for name in assembly.sizes()}
    parts = decode({**files, "state.json": read("state.json", manifest.files["state.json"])})
    expected = json.loads((GOLDEN / "digests.json").read_text())
    assert digests(parts) == expected


def digests(parts: Mapping[str, Any]) -> dict[str, str]:
    """Return digests of all weights and optimizer tensors."""
    found = {f"model.{name}": tensor for name, tensor in parts["model"].items()}
    for number, own in parts["optimizer"]["state"].items():
        found |= {f"optimizer.{number}.{key}": tensor for key, tensor in own.items()}
    return {name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for name, tensor in found.items()}


@pytest.fixture
def machines(place: Path, tmp_path: Path) -> tuple[Place, Manifest, list[CheckpointStore]]:
    """Two machines with one rank's staged files each; an empty store."""
    _, manifest = write(place, 2)
    target, stores = behind(tmp_path / "store"), []
    for rank in (0, 1):
        spool = Spool(tmp_path / f"machine-{rank}")
        (spool.root / NAME.name).mkdir()
        for file in place.iterdir():
            if f"-r0000{rank}" in file.name or file.name == "manifest.json" or (rank == 0 and "-r0" not in file.name):
                (spool.root / NAME.name / file.name).write_bytes(file.read_bytes())
        stores.append(CheckpointStore("r", target.opened(), spool))
    return target, manifest, stores


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_machines_publish_what_they_have_staged_and_the_last_one_commits(
    machines: tuple[Place, Manifest, list[CheckpointStore]], order: tuple[int, int]
) -> None:
    target, manifest, stores = machines
    first, last = (stores[machine] for machine in order)
    folder = f"checkpoints/{NAME.name}"
    assert not first.is_whole(manifest)
    missing = rf"incomplete in the artifact store: .*part-r0000{order[1]}\.json.* Try: mltrain sync on each"
    with pytest.raises(PartsMissing, match=missing):
        publish(first, manifest)
    assert first.manifest(NAME) is None
    assert last.is_whole(manifest)  # what it lacks is in the store
    held = RunHeld("another life has begun")

    def overtaken() -> None:
        raise held

    with pytest.raises(RunHeld):
        publish(last, manifest, require_lease=overtaken)
    data = f"{folder}/state-r0000{order[0]}.safetensors"
    content = target.files.read(data)
    target.files.drop(data)
    with pytest.raises(PartsMissing, match=rf"state-r0000{order[0]}\.safetensors did not arrive"):
        publish(last, manifest)
    target.files.write(data, content)
    part = f"{folder}/part-r0000{order[0]}.json"
    content = target.files.read(part)
    target.files.write(part, content[:-1] + b" ")
    with pytest.raises(StorageError, match="another SHA-256 in the artifact store"):
        publish(last, manifest)
    assert last.manifest(NAME) is None
    target.files.write(part, content)
    publish(last, manifest)
    assert last.manifest(NAME) == manifest
    assert CheckpointStore("r", target.opened()).problems(manifest) == []


@pytest.mark.parametrize(
    ("checks", "published"), [(0, ()), (1, (".safetensors",)), (2, (".safetensors", "part-r00001.json"))]
)
def test_an_upload_stops_where_the_lease_is_lost(
    machines: tuple[Place, Manifest, list[CheckpointStore]], checks: int, published: tuple[str, ...]
) -> None:
    target, manifest, (first, last) = machines
    with pytest.raises(PartsMissing):
        publish(first, manifest)
    before, left = set(target.files.all()), iter(range(checks))

    def require_lease() -> None:
        if next(left, None) is None:
            raise RunHeld("another life has begun")

    with pytest.raises(RunHeld):
        publish(last, manifest, require_lease=require_lease)
    added = set(target.files.all()) - before
    assert all(name.endswith(published) for name in added)
    assert all(any(name.endswith(end) for name in added) for end in published)
