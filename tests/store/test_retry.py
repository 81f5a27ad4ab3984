"""Errors that may pass are retried, others are not."""

import logging
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.errors import StorageError
from mltrain.store import retry
from mltrain.store.remote import RemoteArtifacts


class Faulty(LocalArtifactRepository):
    """MLflow's folder repository, which first raises listed errors."""

    def __init__(self, folder: Path, errors: list[Exception]) -> None:
        super().__init__(str(folder))
        self.errors = errors
        self.calls = 0

    def list_artifacts(self, path: str | None = None) -> Any:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return super().list_artifacts(path)


def http(status: int) -> Exception:
    import requests

    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status}", response=response)


@pytest.mark.parametrize(
    "error", [ConnectionError("reset"), TimeoutError(), http(500), http(503), http(429), http(408)]
)
def test_what_may_pass_is_tried_again(error: Exception, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FullJitter", lambda **_: lambda state: 0)
    repository = Faulty(root, [error, error, error])
    assert [entry.name for entry in RemoteArtifacts(repository).entries()] == ["checkpoints"]
    assert repository.calls == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_what_will_not_pass_is_not_tried_again(status: int, root: Path) -> None:
    repository = Faulty(root, [http(status)])
    with pytest.raises(StorageError, match=str(status)):
        RemoteArtifacts(repository).entries()
    assert repository.calls == 1


def denied() -> list[Exception]:
    """How 403 arrives: from MLflow's listing of a bucket, from boto3's upload, and from a store that cannot do a thing."""
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import ClientError
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

    answer = ClientError(
        {"Error": {"Code": "AccessDenied", "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "ListObjects"
    )
    hidden = S3UploadFailedError("Failed to upload: AccessDenied")
    hidden.__context__ = answer
    return [answer, hidden, MlflowException("no", error_code=PERMISSION_DENIED), NotImplementedError()]


@pytest.mark.parametrize("number", range(4))
def test_a_refusal_is_recognised_wherever_it_is_hidden(number: int, root: Path) -> None:
    repository = Faulty(root, [denied()[number]])
    with pytest.raises(StorageError):
        RemoteArtifacts(repository).entries()
    assert repository.calls == 1


def test_a_store_that_stays_away_is_given_up(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    repository = Faulty(root, [ConnectionError("nobody there")] * 1000)
    with caplog.at_level(logging.DEBUG), pytest.raises(StorageError, match="nobody there"):
        RemoteArtifacts(repository, retry_seconds=0.05).entries()
    assert 1 < repository.calls < 1000


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_ends_a_request_and_is_not_retried(raised: type[BaseException]) -> None:
    calls = []

    def request() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise raised

    with pytest.raises(raised):
        retry.with_retries(request)
    assert len(calls) == 1
