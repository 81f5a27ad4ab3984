"""Secrets of a configuration: which values are, what a record shows of them, and where a resume takes them from."""

import pytest
from pydantic import BaseModel, SecretStr

import mltrain
from mltrain.configuration.secrets import (
    masked_secrets,
    secrets_of,
    secrets_of_environment,
    variable_of,
    without_redacted,
)


class Store(BaseModel):
    password: str = "guest"
    place: str = "here"


class Config(mltrain.Config):
    api_key: str | None = None
    pin: SecretStr = SecretStr("0000")
    store: Store = Store()


def test_secrets_are_recognised_by_type_and_by_name_also_in_nested_values() -> None:
    config = Config(api_key="k1", pin=SecretStr("1234"), store=Store(password="p1"))
    assert list(secrets_of(config)) == ["k1", "1234", "p1"]


def test_a_record_shows_no_secret_and_whether_it_is_the_default() -> None:
    config = Config(api_key="k1", store=Store(password="p1"))
    masked = masked_secrets(
        config, {"api_key": "k1", "pin": "0000", "lr": 1, "store": {"password": "p1", "place": "x"}}
    )
    assert masked["lr"] == 1
    assert masked["store"]["place"] == "x"
    shown = [masked["api_key"], masked["store"]["password"], masked["pin"]]
    assert not {"k1", "p1", "0000"} & set(shown)
    assert shown[0] == shown[1] != shown[2]
    kept, missing = without_redacted(masked)
    assert kept == {"lr": 1, "store": {"place": "x"}}, "the default comes from the code"
    assert missing == ["api_key", "store.password"]


def test_the_environment_has_a_variable_for_each_secret_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert variable_of("store.password") == "MLTRAIN_STORE__PASSWORD"
    for name in ("api_key", "store.password", "store.place", "pin"):
        monkeypatch.setenv(variable_of(name), f"of {name}")
    found = secrets_of_environment(Config)
    assert found == {"api_key": "of api_key", "pin": "of pin", "store": {"password": "of store.password"}}
