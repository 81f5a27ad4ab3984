import pytest
from mlflow import MlflowClient

from mltrain.tracking.client import TrackingClient


@pytest.fixture
def client(server: TrackingClient) -> MlflowClient:
    return server.client.preferred()  # type: ignore[no-any-return] # it is one
