"""A server in memory whose runs change between calls."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from mltrain.ownership import liveness
from mltrain.ownership.attempts import ending_tags
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import ATTEMPT_PREFIX, HEARTBEAT_TAG, HOLDER_TAG, STATUS_TAG

RUN = "a" * 32


DEAD = {**liveness.own(), "ticks": 1}


class Page(list[Any]):
    token = None


class Client:
    """A server of one run that another party changes mid-call. It acts before the call with a certain number."""

    def __init__(self, holder: dict[str, Any], *, status: str = "RUNNING", said: str = "running") -> None:
        self.status, self.stage = status, "active"
        self.params: dict[str, str] = {}
        self.tags = {HOLDER_TAG: json.dumps({"attempt": 1, **holder}), STATUS_TAG: said, HEARTBEAT_TAG: "1.0"}
        self.calls = 0
        self.between: dict[int, Callable[[], None]] = {}

    def _call(self) -> None:
        self.calls += 1
        self.between.pop(self.calls, lambda: None)()

    def search_experiments(self, **_: Any) -> Any:
        self._call()
        return Page([SimpleNamespace(experiment_id="0")])

    def search_runs(self, *_: Any, filter_string: str, **__: Any) -> Any:
        self._call()
        tag_is_running = self.tags[STATUS_TAG] == "running"
        wanted = tag_is_running if f"tags.`{STATUS_TAG}` = 'running'" in filter_string else not tag_is_running
        if "attributes.status = 'RUNNING'" in filter_string and self.status != "RUNNING":
            wanted = False
        return Page([self._run()] if wanted else [])

    def get_run(self, run_id: str) -> Any:
        self._call()
        return self._run()

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self._call()
        self.tags[key] = value

    def update_run(self, run_id: str, status: str) -> None:
        self._call()
        self.status = status

    set_terminated = update_run

    def _run(self) -> Any:
        info = SimpleNamespace(run_id=RUN, run_name="run", lifecycle_stage=self.stage, status=self.status)
        return SimpleNamespace(info=info, data=SimpleNamespace(params=dict(self.params), tags=dict(self.tags)))

    def claim(self) -> None:
        self.params[f"{ATTEMPT_PREFIX}2"] = json.dumps({"attempt": 2, **liveness.own()})

    def begin(self) -> None:
        self.status = "RUNNING"
        self.tags |= {
            HOLDER_TAG: json.dumps({"attempt": 2, **liveness.own()}),
            STATUS_TAG: "running",
            HEARTBEAT_TAG: "2.0",
        }

    def resume(self) -> None:
        self.claim()
        self.begin()

    def resume_and_finish(self) -> None:
        self.resume()
        self.tags |= ending_tags(2, "finished")
        self.status = "FINISHED"


def server(client: Client) -> TrackingClient:
    return TrackingClient("http://127.0.0.1:1", client)


def state(client: Client) -> tuple[str, str]:
    return client.status, client.tags[STATUS_TAG]
