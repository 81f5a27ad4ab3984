"""Connections retry safe requests, and name errors by their remedy."""

import sqlite3
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, MlflowException
from sqlalchemy.exc import OperationalError

from mltrain.errors import RunNotFound, TrackingError
from mltrain.tracking.client import TrackingClient, connect
from mltrain.tracking.connection import DeferredClient, Refusal, checked

RUN = "a" * 32


class Failing:
    """An ``MlflowClient`` whose first requests fail."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked = 0

    def _answer(self) -> None:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self._answer()

    def create_run(self, *arguments: Any) -> Any:
        self._answer()

    def get_run(self, run_id: str) -> Any:
        self._answer()
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id, lifecycle_stage="deleted"))


def test_a_request_is_retried_while_it_may_pass() -> None:
    client = Failing(ConnectionError("reset"), ConnectionError("reset"))
    TrackingClient("http://127.0.0.1:1", client, 60.0).set_tag(RUN, "key", "value")
    assert client.asked == 3


def test_once_means_one_try() -> None:
    client = Failing(ConnectionError("reset"))
    with pytest.raises(TrackingError, match="does not answer"):
        TrackingClient("http://127.0.0.1:1", client, 60.0).once.set_tag(RUN, "key", "value")
    assert client.asked == 1


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("BEGIN", {}, sqlite3.OperationalError("database is locked")),
        MlflowException("database is locked"),
    ],
)
def test_a_database_that_is_locked_is_called_that_and_no_server(error: Exception) -> None:
    with pytest.raises(Refusal) as refused:
        TrackingClient("sqlite:///mlflow.db", Failing(error)).set_tag(RUN, "key", "value")
    assert str(refused.value) == (
        "The database sqlite:///mlflow.db is locked: another process writes to it, or its disk is slow."
    )
    assert not refused.value.permanent


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (
            'NewConnectionError("HTTPConnection(…): Failed to establish: [Errno 111] Connection refused"))',
            "Connection refused",
        ),
        (
            "NameResolutionError(\"Failed to resolve 'x' ([Errno -2] Name or service not known)\"))",
            "Name or service not known",
        ),
        ("HTTPConnectionPool(host='127.0.0.1', port=1): Read timed out. (read timeout=20.0)", "Read timed out"),
        (
            "SSLError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1))",
            "certificate verify failed: self-signed certificate",
        ),
        (
            "Max retries exceeded (Caused by ResponseError('too many 503 error responses'))",
            "too many 503 error responses",
        ),
        ("('Connection aborted.', strange)", "('Connection aborted.', strange)"),
        ("", "API request to http://127.0.0.1:1/api failed with exception"),
    ],
)
def test_a_server_that_does_not_answer_is_called_that_with_the_reason_alone(cause: str, reason: str) -> None:
    client = Failing(MlflowException(f"API request to http://127.0.0.1:1/api failed with exception {cause}"))
    with pytest.raises(Refusal) as silent:
        TrackingClient("http://127.0.0.1:1", client).once.set_tag(RUN, "key", "value")
    assert str(silent.value) == (
        f"http://127.0.0.1:1 does not answer: {reason}. Try: start the server, or correct MLFLOW_TRACKING_URI."
    )
    assert not silent.value.permanent


def test_a_run_is_created_with_one_try() -> None:
    client = Failing(ConnectionError("reset"))
    with pytest.raises(TrackingError):
        TrackingClient("http://127.0.0.1:1", client, 60.0).create_run("0", 1, {}, "name")
    assert client.asked == 1


def test_what_is_refused_for_good_is_not_retried() -> None:
    client = Failing(MlflowException("bad", error_code=INVALID_PARAMETER_VALUE))
    with pytest.raises(Refusal) as refused:
        TrackingClient("http://127.0.0.1:1", client, 60.0).set_tag(RUN, "key", "value")
    assert (refused.value.permanent, refused.value.denied, client.asked) == (True, False, 1)


@pytest.mark.parametrize("error", [None, MlflowException("none", error_code=RESOURCE_DOES_NOT_EXIST)])
def test_a_run_that_is_deleted_or_unknown_is_not_found(error: Exception | None) -> None:
    client = Failing(*([error] if error is not None else []))
    with pytest.raises(RunNotFound) as refused:
        TrackingClient("http://127.0.0.1:1", client, 60.0).run(RUN)
    assert error is None or "none. Is MLFLOW_TRACKING_URI the one of the training?" in str(refused.value)
    assert client.asked == 1


def test_what_is_no_run_id_is_not_sent() -> None:
    client = Failing()
    with pytest.raises(RunNotFound, match="32 hexadecimal digits"):
        TrackingClient("http://127.0.0.1:1", client).run("name")
    assert client.asked == 0


def test_a_locked_database_is_tried_again_before_tags_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    client, tries = DeferredClient("sqlite:///mlflow.db"), []

    def made(self: DeferredClient) -> Any:
        tries.append(self)
        if len(tries) == 1:
            raise RuntimeError("database is locked")
        return self

    monkeypatch.setattr(DeferredClient, "mlflow_client", made)
    monkeypatch.setattr(DeferredClient, "log_batch", lambda *_, **__: tries.append(client), raising=False)
    TrackingClient("sqlite:///mlflow.db", client, 60.0).set_tags(RUN, {"key": "value"})
    assert len(tries) == 3
    monkeypatch.setattr(DeferredClient, "mlflow_client", lambda _: tries.clear() or made(client))
    with pytest.raises(Refusal, match="is locked"):
        TrackingClient("sqlite:///mlflow.db", DeferredClient("sqlite:///mlflow.db")).set_tags(RUN, {"key": "value"})


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (" ", "it is blank"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("127.0.0.1:5000", r"it has no scheme\. Expected http://127\.0\.0\.1:5000"),
        ("trainer.example:5000/mlflow", "it has no scheme"),
    ],
)
def test_an_address_that_is_no_uri_is_refused_before_any_request(uri: str, expected: str) -> None:
    with pytest.raises(TrackingError, match=expected):
        connect(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///a.db",
        "file:./mlruns",
        "file:2026/mlruns",
        "./mlruns",
        "mlruns",
        "C:/mlruns",
        "http://[::1]:5000",
        "databricks",
    ],
)
def test_other_forms_of_a_tracking_uri_are_left_to_mlflow(uri: str) -> None:
    assert checked(uri) == uri


@pytest.mark.parametrize("seconds", ["abc", "0", "-5"])
def test_a_timeout_that_is_no_positive_number_is_refused_by_name(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", seconds)
    with pytest.raises(TrackingError, match=rf"MLFLOW_HTTP_REQUEST_TIMEOUT='{seconds}' is invalid"):
        connect("http://127.0.0.1:1")
