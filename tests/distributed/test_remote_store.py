"""Sharded checkpoints in an artifact store that is no folder; every rank has a home of its own, as on a machine of its own."""

import re
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.faults.proxy import FaultProxy, Rule
from tests.support import ranks
from tests.support.places import BucketFiles, Files, FolderFiles
from tests.support.ranks import FSDP, TRAIN, assert_ended_alike
from tests.support.servers import BucketServer, TrackingServer
from tests.support.waiting import eventually
from tests.support.workplace import Done, Workplace

SHARDS = [f"{stem}-r0000{rank}.safetensors" for stem in ("model", "state") for rank in (0, 1)]

NAMES = [
    {f"{stem}-r0000{rank}.{kind}" for stem, kind in (("model", "safetensors"), ("part", "json"))} for rank in (0, 1)
]


def made(workplace: Workplace) -> Workplace:
    (workplace.folder / "ranked.py").write_bytes(Path(ranks.__file__).with_name("ranked.py").read_bytes())
    return workplace


def homes(here: Workplace) -> list[Path]:
    """The home of each rank; rank 0's is the workplace's own."""
    return [Path(here.environment["MLTRAIN_HOME"]), here.folder / "unused"]


def staged(home: Path) -> dict[str, set[str]]:
    """Return the file names of each staged checkpoint."""
    return {folder.name: {file.name for file in folder.iterdir()} for folder in home.glob("*/*/staging/*")}


def checkpoints(files: Files) -> dict[str, set[str]]:
    """Return the file names of each checkpoint in a store."""
    found: dict[str, set[str]] = {}
    for kind, folder, name in (path.split("/") for path in files.all() if path.startswith("checkpoints/")):
        found.setdefault(f"{kind}/{folder}", set()).add(name)
    return found


def newest(files: Files) -> str:
    return max(checkpoints(files))


def synced(here: Workplace, home: Path) -> Done:
    done = here.mltrain("sync", MLTRAIN_HOME=str(home))
    assert done.code == 0, done.out + done.err
    return done


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, tracking_server: TrackingServer, fork_server: Any) -> Workplace:
    return made(Workplace(tmp_path_factory.mktemp("uploads") / "here", fork_server, tracking_server.uri))


def files_of(run_id: str, tracking_server: TrackingServer) -> Files:
    return FolderFiles(tracking_server.folder / "artifacts" / "0" / run_id / "artifacts")


@pytest.fixture(scope="module")
def undisturbed(here: Workplace) -> str:
    done = ranks.run(here, 2, *TRAIN, uuid.uuid4().hex, *FSDP)
    assert [rank.code for rank in done] == [0, 0], done
    return done[0].run_id


@pytest.mark.faults
def test_ranks_upload_and_download_what_is_theirs_and_what_a_kill_left_is_completed(
    here: Workplace, undisturbed: str, tracking_server: TrackingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(undisturbed, tracking_server)
    last = newest(files)
    assert checkpoints(files)[last] >= {"manifest.json", "model.safetensors"} | NAMES[0] | NAMES[1]
    for rank, home in enumerate(homes(here)):
        kept = staged(home)
        assert [f"checkpoints/{name}" for name in kept] == [last]  # the newest stays, as for a single process
        assert kept[last.split("/")[1]] & (NAMES[0] | NAMES[1]) == NAMES[rank]

    command = (*TRAIN, uuid.uuid4().hex, *FSDP)
    dead = ranks.run(here, 2, *command, "die_at_manifest=3")
    assert dead[0].code == -signal.SIGKILL, dead
    assert dead[1].code == 1, dead
    files = files_of(dead[0].run_id, tracking_server)
    last = newest(files)
    assert "manifest.json" not in checkpoints(files)[last]
    files.drop(f"{last}/part-r00001.json")  # as if rank 0's machine had been quicker
    first, second = (synced(here, home) for home in homes(here))
    assert f"{last.split('/')[1]} is incomplete in the artifact store: part-r00001.json did not arrive" in first.out
    assert "1 checkpoint uploaded" in second.out
    verified = here.mltrain("verify", dead[0].run_id)
    assert verified.code == 0, verified.out + verified.err
    assert here.checkpoint_names(dead[0].run_id)[-1] == last.split("/")[1]

    content = bytearray(files.read(f"{last}/state-r00001.safetensors"))
    content[-1] ^= 1
    files.write(f"{last}/state-r00001.safetensors", bytes(content))
    for home in homes(here):  # other machines, which have to download
        shutil.move(home, home.with_name(f"{home.name}-of-the-killed"))
    counted = FaultProxy(tracking_server.port)
    monkeypatch.setitem(here.environment, "MLFLOW_TRACKING_URI", counted.uri)
    again = ranks.run(here, 2, *command)
    monkeypatch.undo()
    counted.close()
    assert [rank.code for rank in again] == [0, 0], again
    assert again[0].run_id == dead[0].run_id
    assert f"{last.split('/')[1]} is damaged" in again[0].err
    assert_ended_alike(here, again[0].run_id, undisturbed)
    pieces = {path: n for path, n in counted.happened.items() if re.search(r"(model|state)-r\d+\.safe", path)}
    sent = {path: n for path, n in pieces.items() if path.startswith("PUT")}
    received = {path.split("/checkpoints/")[1]: n for path, n in pieces.items() if path.startswith("GET")}
    used = sorted(checkpoints(files))[sorted(checkpoints(files)).index(last) - 1].split("/")[1]
    assert set(sent.values()) == {1}
    assert {name: received[f"{used}/{name}"] for name in SHARDS} == dict.fromkeys(SHARDS, 1)  # by one rank, once


@pytest.mark.faults
def test_a_rank_whose_disk_is_full_stops_no_training_and_harms_no_earlier_checkpoint(
    here: Workplace, undisturbed: str, tracking_server: TrackingServer
) -> None:
    command = (*TRAIN, uuid.uuid4().hex, *FSDP)
    full = ranks.run(here, 2, *command, "full_at=7")  # in the second epoch
    assert [rank.code for rank in full] == [5, 5], full
    assert "Rank 1: " in full[0].err
    assert "No space left on device. Free some space" in full[0].err
    steps = [step for step, _ in here.points(full[0].run_id)["step/loss"]]
    assert steps == [step for step, _ in here.points(undisturbed)["step/loss"]]  # all ranks trained on to the end
    verified = here.mltrain("verify", full[0].run_id, "--json")
    assert (verified.code, verified.json["damaged"]) == (0, {}), verified.out
    last = here.checkpoint_names(full[0].run_id)[-1]
    assert last in ("step-000000004-a01", "step-000000006-a01")  # the second may still be under way in step 7
    again = ranks.run(here, 2, *command)
    assert [rank.code for rank in again] == [0, 0], again
    assert_ended_alike(here, again[0].run_id, undisturbed)


@pytest.mark.slow
def test_ranks_of_one_machine_go_on_from_what_they_have_staged(
    here: Workplace, undisturbed: str, tracking_server: TrackingServer
) -> None:
    command, one_home = (*TRAIN, uuid.uuid4().hex, *FSDP), {"MLTRAIN_HOME": str(homes(here)[0])}
    dead = ranks.run(here, 2, *command, "die_at_manifest=3", others=one_home)
    assert dead[0].code == -signal.SIGKILL, dead
    last = newest(files_of(dead[0].run_id, tracking_server)).split("/")[1]
    assert staged(homes(here)[0])[last] >= NAMES[0] | NAMES[1]
    again = ranks.run(here, 2, *command, others=one_home)
    assert [rank.code for rank in again] == [0, 0], again
    assert_ended_alike(here, again[0].run_id, undisturbed)
    branch = MlflowClient(here.uri).get_run(again[0].run_id).data.tags["mltrain.resumed_from"]
    assert branch == last


@pytest.fixture
def proxy(bucket_server: BucketServer) -> Iterator[FaultProxy]:
    started = FaultProxy(bucket_server.port)
    yield started
    started.close()


@pytest.mark.slow
def test_a_machine_whose_store_refuses_keeps_its_files_until_all_are_sent(
    tmp_path: Path, fork_server: Any, bucket_server: BucketServer, proxy: FaultProxy
) -> None:
    here = made(Workplace(tmp_path / "here", fork_server))
    here.environment |= {**bucket_server.access, "MLTRAIN_GRACE_SECONDS": "1"}
    prefix = uuid.uuid4().hex
    uri = f"s3://{bucket_server.bucket}/{prefix}"
    here.environment["MLFLOW_EXPERIMENT_ID"] = MlflowClient(here.uri).create_experiment(prefix, artifact_location=uri)
    proxy.rules = [Rule("PUT /.*checkpoints", ["403"], skip=3)]  # the first checkpoint arrives
    done = ranks.run(here, 2, *TRAIN, prefix, *FSDP, others={"MLFLOW_S3_ENDPOINT_URL": proxy.uri})
    assert [rank.code for rank in done] == [76, 76], done
    assert "Rank 1 could not upload its files" in done[0].err
    run_id = done[0].run_id
    files = BucketFiles(bucket_server.client(), bucket_server.bucket, f"{prefix}/{run_id}/artifacts")
    committed = [name for name, there in checkpoints(files).items() if "manifest.json" in there]
    assert len(committed) == 1
    assert newest(files) not in committed  # rank 0 has sent what it has of it
    last = f"checkpoints/{max(staged(homes(here)[0]))}"
    for rank, home in enumerate(homes(here)):
        assert staged(home)[last.split("/")[1]] >= NAMES[rank]
    sent = [synced(here, home) for home in reversed(homes(here))]
    assert f"{last.split('/')[1]} is incomplete in the artifact store" in sent[0].out
    for name in (last, *committed):
        assert checkpoints(files)[name] >= {"manifest.json"} | NAMES[0] | NAMES[1]
    verified = here.mltrain("verify", run_id)
    assert verified.code == 0, verified.out + verified.err
    run = MlflowClient(here.uri).get_run(run_id)
    assert (run.info.status, run.data.tags["mltrain.latest"]) == ("FINISHED", last.split("/")[1])


@pytest.mark.slow
def test_ranks_that_were_stopped_publish_nothing_after_another_life_has_begun(
    here: Workplace, tracking_server: TrackingServer, tmp_path: Path
) -> None:
    command = (*TRAIN, uuid.uuid4().hex, *FSDP)
    stopped = ranks.start(here, 2, *command, "stop_at_upload=3")
    try:
        eventually(lambda: state_of(stopped[1].child.pid) == "T", "the stop of rank 1")
        stopped[0].child.kill(signal.SIGSTOP)
        eventually(lambda: state_of(stopped[0].child.pid) == "T", "the stop of rank 0")
        elsewhere = here.elsewhere(f"elsewhere-{uuid.uuid4().hex}")
        done = ranks.run(made(elsewhere), 2, *command, "--take-over")
        assert [rank.code for rank in done] == [0, 0], done
        files = files_of(done[0].run_id, tracking_server)
        before = finished(files)
    finally:
        for rank in stopped:
            rank.child.kill(signal.SIGCONT)
    woken = [rank.wait(200) for rank in stopped]
    assert 0 not in [rank.code for rank in woken], woken
    after = finished(files)
    assert {name: after[name] for name in before} == before
    added = after.keys() - before.keys()
    assert [name for name in added if "part-" in name or "manifest" in name or "-a01/" not in name] == []
    assert here.status(done[0].run_id) == "FINISHED"


def finished(files: Files) -> dict[str, bytes]:
    """Return all files of a store except unfinished uploads."""
    return {name: content for name, content in files.all().items() if ".artifact.uploading." not in name}


def state_of(pid: int) -> str:
    stat = Path(f"/proc/{pid}/stat")
    return stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else ""
