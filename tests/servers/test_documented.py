"""Starts the database and bucket servers of docs/servers.md."""

from pathlib import Path

import pytest

from tests.servers.conftest import PostgresServer
from tests.support.forkserver import ForkServer
from tests.support.pages import DOCS, commands
from tests.support.reader import Reader
from tests.support.servers import BucketServer


@pytest.mark.parametrize("destination", ["./artifacts", "s3://bucket/mlflow"])
def test_a_training_goes_to_a_server_on_postgresql(
    destination: str, tmp_path: Path, postgresql: PostgresServer, bucket_server: BucketServer, fork_server: ForkServer
) -> None:
    reader = Reader(tmp_path / "checkout", fork_server)
    reader.environment |= {"PGHOST": str(postgresql.folder), "PGUSER": "postgres", **bucket_server.access}
    page = DOCS / "servers.md"
    (create,) = (one for one in commands(page) if one.startswith("createdb"))
    (serve,) = (one for one in commands(page) if "postgresql" in one and one.endswith(f"destination {destination}"))
    database = f"mlflow_{'s3' if '://' in destination else 'folder'}"
    reader.type(create, {"mlflow": database})
    here = {
        r"mlflow:PASSWORD@127\.0\.0\.1/mlflow": f"postgres@/{database}?host={postgresql.folder}",
        "s3://bucket": f"s3://{bucket_server.bucket}",
        "$": " --port PORT",
    }
    reader.serve(serve, here, "/health")
    try:
        reader.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{reader.port}"
        trained = reader.type("mltrain train tiny.py epochs=1", {})
        reader.type(f"mltrain verify {trained.run_id}", {})
        reader.type("mltrain doctor", {})
    finally:
        reader.leave()
    if "://" in destination:
        kept = bucket_server.client().list_objects_v2(Bucket=bucket_server.bucket, Prefix="mlflow/")["Contents"]
        assert any(entry["Key"].endswith("model.safetensors") for entry in kept)
    else:
        assert list((reader.folder / "artifacts").rglob("model.safetensors"))
