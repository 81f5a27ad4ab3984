"""Chooses the client that serves a request: MLflow's own, or one without MLflow."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mltrain.compat.database import READS, DatabaseReader, Unreadable
from mltrain.compat.rest import RestClient
from mltrain.compat.rest_server import is_plain

if TYPE_CHECKING:
    from mlflow import MlflowClient


class DeferredClient:
    """An ``MlflowClient`` created at its first use.

    Creating one queries the tables of a database, which may be locked. A plain server is accessed through
    :class:`~mltrain.compat.rest.RestClient`, without MLflow, as far as that one's methods go.

    Args:
        uri: of the server or database.
        reader: reads the database before the client is created. If ``None``, the client reads.
    """

    def __init__(self, uri: str, reader: DatabaseReader | None = None) -> None:
        self._uri = uri
        self.reader = reader
        self._created: MlflowClient | RestClient | None = None
        self._mlflow_client: MlflowClient | None = None

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.reader is not None and self._created is None and name in READS:
                with suppress(Unreadable):
                    return getattr(self.reader, name)(*arguments, **named)
            client = self.preferred()
            return getattr(client if hasattr(client, name) else self.mlflow_client(), name)(*arguments, **named)

        return call

    def preferred(self) -> "MlflowClient | RestClient":
        """Return the preferred client, creating it if needed."""
        if self._created is None:
            self._created = RestClient(self._uri) if is_plain(self._uri) else self.mlflow_client()
        return self._created

    def mlflow_client(self) -> "MlflowClient":
        """Return MLflow's own client, creating it if needed."""
        if self._mlflow_client is None:
            from mlflow import MlflowClient

            self._mlflow_client = MlflowClient(self._uri)
        return self._mlflow_client
