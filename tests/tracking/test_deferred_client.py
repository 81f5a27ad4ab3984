"""The client of a database or server is created when a request needs it."""

from typing import Any

import pytest

from mltrain.tracking.client import TrackingClient
from mltrain.tracking.connection import Refusal
from mltrain.tracking.deferred_client import DeferredClient

RUN = "a" * 32


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
