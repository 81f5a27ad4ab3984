"""Removals as users meet them: not permitted, interrupted, and beside what others made of a checkpoint."""

import http.client
import http.server
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
from mlflow import MlflowClient

from tests.support.folders import flip
from tests.support.forkserver import ForkServer
from tests.support.servers import TrackingServer
from tests.support.workplace import Workplace

pytestmark = pytest.mark.faults


def names(workplace: Workplace, run_id: str) -> list[str]:
    return [row["checkpoint"] for row in workplace.mltrain("checkpoints", run_id, "--json").json]


def checkpoints_of(workplace: Workplace, run_id: str) -> Path:
    return workplace.folder / "mlruns" / "0" / run_id / "artifacts" / "checkpoints"


class Warden(http.server.BaseHTTPRequestHandler):
    """Forwards requests to a server, but forbids every DELETE."""

    upstream = ""
    refused: list[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if self.command == "DELETE":
            self.refused.append(self.path)
            self._reply(403, b'{"error_code": "PERMISSION_DENIED", "message": "not for you"}', "application/json")
            return
        upstream = http.client.HTTPConnection(self.upstream, timeout=60)
        kept = {
            k: v for k, v in self.headers.items() if k.lower() not in ("host", "transfer-encoding", "content-length")
        }
        upstream.request(self.command, self.path, body, kept)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        self._reply(answer.status, content, answer.headers.get("Content-Type", "text/plain"))

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the names that http.server looks for

    def _reply(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def warden(tracking_server: TrackingServer) -> Iterator[tuple[str, list[str]]]:
    refused: list[str] = []
    kind = type("Bound", (Warden,), {"upstream": f"127.0.0.1:{tracking_server.port}", "refused": refused})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", refused
    server.shutdown()
    thread.join()
    server.server_close()


def test_where_deleting_is_not_permitted_one_warning_names_it_and_the_training_goes_on(
    warden: tuple[str, list[str]], tmp_path: Path, fork_server: ForkServer
) -> None:
    uri, refused = warden
    workplace = Workplace(tmp_path / "here", fork_server, uri)
    done = workplace.mltrain("train", "tiny.py", "epochs=5", "max_to_keep=1", "items=8")
    assert done.code == 0, done.err
    assert refused, "it was tried"
    assert len(refused) <= 5, "and not again and again"
    assert done.err.count("Older checkpoints stay") == 1
    assert "403" in done.err
    assert len(names(workplace, done.run_id)) == 5
    pruned = workplace.mltrain("prune", done.run_id, "--yes")
    assert pruned.code == 5, pruned.out + pruned.err
    assert "403" in pruned.err
    assert workplace.mltrain("verify", done.run_id).code == 0


def test_a_model_made_from_a_checkpoint_goes_with_it_and_a_registered_one_protects_it(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", workplace.uri)  # MLflow's registry asks the default store about models
    run_id = workplace.mltrain("train", "tiny.py", "epochs=6", "max_to_keep=9", "best_metric=none-such").run_id
    made_from, registered, by_run, by_place, *_ = names(workplace, run_id)
    client = MlflowClient(workplace.uri)
    root = client.get_run(run_id).info.artifact_uri
    (workplace.folder / "weights.txt").write_text("weights")

    def model_of(checkpoint: str) -> Any:
        model = client.create_logged_model("0", "net", source_run_id=run_id, tags={"mltrain.checkpoint": checkpoint})
        client.log_model_artifact(model.model_id, str(workplace.folder / "weights.txt"))
        return client.finalize_logged_model(model.model_id, "READY")

    alone, kept = model_of(made_from), model_of(registered)
    client.create_registered_model("net")
    client.create_model_version("net", f"models:/{kept.model_id}", model_id=kept.model_id)
    client.set_registered_model_alias("net", "champion", "1")
    client.create_model_version("net", f"{root}/checkpoints/{by_run}", run_id=run_id)
    client.create_model_version("net", f"{root}/checkpoints/{by_place}")
    pruned = workplace.mltrain("prune", run_id, "--keep", "Latest(1)", "--yes")
    assert pruned.code == 0, pruned.out + pruned.err
    left = names(workplace, run_id)
    assert left[:-1] == [registered, by_run, by_place]
    assert len(left) == 4
    assert [model.model_id for model in client.search_logged_models(["0"])] == [kept.model_id]
    assert not any(Path(alone.artifact_location).rglob("*"))
    assert (Path(kept.artifact_location) / "weights.txt").read_text() == "weights"


def test_what_a_crash_left_is_listed_and_removed_and_what_is_fresh_stays(workplace: Workplace) -> None:
    run_id = workplace.mltrain("train", "tiny.py", "epochs=3", "max_to_keep=9").run_id
    checkpoints = checkpoints_of(workplace, run_id)
    first = sorted(checkpoints.iterdir())[0]
    (first / "manifest.json").unlink()  # as a removal begins
    fresh, old = (checkpoints.parent / f".artifact.uploading.{name}" for name in ("fresh", "old"))
    for file in (fresh, old):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    staged = checkpoints.parent.parent / ".mltrain-staging" / "step-000000099-a01.0123abcd.tmp"
    staged.mkdir(parents=True)
    (staged / "model.safetensors").write_bytes(b"half")
    found = workplace.mltrain("verify", run_id, "--json").json
    assert found["uncommitted"] == [first.name]
    assert set(found["litter"]) == {fresh.name, old.name, f"../.mltrain-staging/{staged.name}"}
    pruned = workplace.mltrain("prune", run_id, "--yes")
    assert pruned.code == 0, pruned.err
    assert [path.exists() for path in (first, fresh, old, staged)] == [False, True, False, False]
    assert workplace.mltrain("verify", run_id, "--json").json["litter"] == [fresh.name]


def test_before_others_go_the_newest_is_looked_at(workplace: Workplace) -> None:
    run_id = workplace.mltrain("train", "tiny.py", "epochs=4", "max_to_keep=9", "best_metric=none-such").run_id
    *_, intact, newest = names(workplace, run_id)
    flip(checkpoints_of(workplace, run_id) / newest / "model.safetensors")
    pruned = workplace.mltrain("prune", run_id, "--keep", "Latest(1)", "--yes")
    assert pruned.code == 0, pruned.err
    assert names(workplace, run_id) == [intact, newest]
    assert "is damaged" in pruned.err
    resumed = workplace.mltrain("train", "--resume-run", run_id, "epochs=5")
    assert resumed.code == 0, resumed.err


def test_a_run_that_somebody_on_this_host_holds_is_not_pruned(workplace: Workplace) -> None:
    run_id = workplace.mltrain("train", "tiny.py", "epochs=3").run_id
    (lock,) = (workplace.folder / "home").glob(f"*/{run_id}/lock")
    with filelock.FileLock(lock):
        refused = workplace.mltrain("prune", run_id, "--keep", "Latest(1)", "--yes")
    assert refused.code == 4, refused.out + refused.err
    assert len(names(workplace, run_id)) == 3


def test_a_run_whose_policy_is_not_known_is_not_pruned_by_another_one(workplace: Workplace) -> None:
    run_id = workplace.mltrain("train", "tiny.py", "epochs=7", "max_to_keep=7").run_id
    MlflowClient(workplace.uri).set_tag(run_id, "mltrain.retention", "<my own policy>")
    refused = workplace.mltrain("prune", run_id, "--yes")
    assert refused.code == 2, refused.err
    assert "--keep" in refused.err
    whole = workplace.mltrain("prune", "--experiment", "Default", "--yes")
    assert "skipped" in whole.out
    assert len(names(workplace, run_id)) == 7
    MlflowClient(workplace.uri).delete_tag(run_id, "mltrain.retention")
    (checkpoints_of(workplace, run_id).parent / "config.json").unlink()
    assert workplace.mltrain("prune", run_id, "--yes").code == 2
    assert len(names(workplace, run_id)) == 7


def test_a_fork_that_died_before_its_first_commit_protects_its_branch_point_and_goes_on_from_there(
    workplace: Workplace,
) -> None:
    source = workplace.mltrain("train", "tiny.py", "epochs=3", "max_to_keep=9").run_id
    branch = names(workplace, source)[0]
    arguments = ("--fork-run", source, "--resume-from", "epoch:1", "epochs=3", "lr=0.5")
    fork = workplace.mltrain("train", *arguments, "kill_at=8")
    assert fork.code == -9
    assert names(workplace, fork.run_id) == []
    assert workplace.mltrain("prune", source, "--keep", "Latest(1)", "--yes").code == 0
    assert branch in names(workplace, source)
    resumed = workplace.mltrain("train", "--resume-run", fork.run_id, "kill_at=0")
    assert resumed.code == 0, resumed.err
    assert branch in resumed.out
    undisturbed = workplace.mltrain("train", *arguments)
    assert workplace.points(fork.run_id) == workplace.points(undisturbed.run_id)
    assert not re.search("mltrain.pin", str(MlflowClient(workplace.uri).get_run(source).data.tags))
