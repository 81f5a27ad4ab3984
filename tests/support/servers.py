"""Servers that tests talk to as users do: MLflow's own, and one that speaks S3. All on this machine only."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.database import fresh_database
from tests.support.waiting import eventually


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def answers(process: "subprocess.Popen[bytes]", page: str, log: Path | None = None) -> bool:
    """Return whether a page answers; fail if its server ended."""
    assert process.poll() is None, log.read_text()[-4000:] if log else f"{process.args} ended"
    try:
        with urllib.request.urlopen(page, timeout=2):
            return True
    except OSError:
        return False


class _Process:
    """A server in its own process group. It can be killed and started again on the same port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    @property
    def page(self) -> str:
        """What answers once the server is up."""
        return self.uri

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command(),
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        eventually(lambda: answers(self.process, self.page), f"the start of {self.command()[0]}")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Connections are accepted, and nothing is answered."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)


class TrackingServer(_Process):
    """An MLflow server with proxied artifacts, in a folder.

    Args:
        folder: for its database, and for the artifacts unless they go elsewhere.
        artifacts: where they go, such as ``s3://bucket``.
        workers: processes that answer; MLflow's own default is four.
        environment: beside this process's own.
    """

    def __init__(self, folder: Path, artifacts: str | None = None, *, workers: int = 1, **environment: str) -> None:
        super().__init__()
        self._workers = str(workers)
        self.folder = folder
        self._artifacts = artifacts or str(folder / "artifacts")
        self._more = environment
        fresh_database(folder / "mlflow.db", Path("mlflow-artifacts:"))

    @property
    def page(self) -> str:
        return f"{self.uri}/health"

    def environment(self) -> dict[str, str]:
        return {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self._more}

    def command(self) -> list[str]:
        return [
            *(str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--workers", self._workers),
            *("--artifacts-destination", self._artifacts),
        ]


class ModelServer(_Process):
    """``mlflow models serve`` of a registered model.

    Args:
        model: its URI.
        environment: by which MLflow finds the tracking store.
    """

    def __init__(self, model: str, environment: Mapping[str, str]) -> None:
        super().__init__()
        self._model, self._environment = model, dict(environment)

    @property
    def page(self) -> str:
        return f"{self.uri}/ping"

    def environment(self) -> dict[str, str]:
        # MLflow starts uvicorn by its name.
        return {**self._environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def command(self) -> list[str]:
        return [
            *(str(Path(sys.executable).parent / "mlflow"), "models", "serve", "--model-uri", self._model),
            *("--host", "127.0.0.1", "--port", str(self.port), "--env-manager", "local", "--workers", "1"),
        ]


class BucketServer(_Process):
    """moto, which speaks S3, with one bucket."""

    bucket = "artifacts"

    @property
    def access(self) -> dict[str, str]:
        """The environment by which MLflow and boto3 find it."""
        return {
            "MLFLOW_S3_ENDPOINT_URL": self.uri,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def command(self) -> list[str]:
        return [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(self.port)]

    @property
    def page(self) -> str:
        return f"{self.uri}/moto-api/data.json"

    def start(self) -> None:
        super().start()
        self.client().create_bucket(Bucket=self.bucket)

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.uri,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
