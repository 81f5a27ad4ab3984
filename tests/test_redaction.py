"""S7, S5: planted secrets are found nowhere; names and notes do nothing to a browser or a terminal."""

import secrets
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pydantic import SecretStr

from mltrain.config import Config
from mltrain.errors import ConfigError
from mltrain.redaction import (
    DEFAULT,
    REDACTED,
    is_secret,
    redacted,
    remember,
    remember_environment,
)
from tests.support.workplace import Workplace

PROJECT = """
import os
from pydantic import BaseModel, SecretStr
import tiny
from tiny import build as build_tiny

class Store(BaseModel):
    user: str = "me"
    password: str = ""

class Config(tiny.Config):
    api_key: str = ""
    hf_token: SecretStr = SecretStr("")
    db: Store = Store()
    source: str = ""
    mirrors: list[str] = []
    note: str = ""
    raising: str = ""

def build(config):
    if config.raising:
        raise RuntimeError(f"cannot log in with {config.api_key} and {os.environ['WANDB_API_KEY']}")
    return build_tiny(config)
"""


def planted() -> dict[str, str]:
    names = (
        *("api_key", "hf_token", "db_password", "source_password", "mirror_password", "mirror_token", "remote_token"),
        *("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "HF_TOKEN", "DB_PASSWORD", "MY_SECRET"),
        *(
            "GITHUB_TOKEN",
            "DATABASE_URL",
            "tracking_password",
            "SMTP_PASSWD",
            "AUTH_TOKEN",
            "PRIVATE_KEY",
            "NOTED_TOKEN",
        ),
    )
    return {name: f"{name[:3]}{secrets.token_hex(8)}" for name in names}


def found_in(folder: Path, values: dict[str, str], *texts: str) -> set[str]:
    """Return the names of the secrets in files or texts."""
    contents = [file.read_bytes() for file in folder.rglob("*") if file.is_file() and ".git" not in file.parts]
    contents += [text.encode() for text in texts]
    return {name for name, value in values.items() for content in contents if value.encode() in content}


def test_of_twenty_planted_secrets_none_is_found_anywhere(workplace: Workplace) -> None:
    values = planted()
    assert len(values) == 20
    (workplace.folder / "secretive.py").write_text(PROJECT)
    remote = f"https://robot:{values['remote_token']}@example.org/a.git"
    commit = ["-c", "user.name=me", "-c", "user.email=me@example.org", "commit", "-qm", "first", "--allow-empty"]
    for words in (["init", "-q"], ["remote", "add", "origin", remote], commit):
        subprocess.run(["git", *words], cwd=workplace.folder, check=True)
    environment = {name: values[name] for name in values if name.isupper() and name != "DATABASE_URL"}
    environment["DATABASE_URL"] = f"postgresql://me:{values['DATABASE_URL']}@db/x"
    given = [
        f"api_key={values['api_key']}",
        f"hf_token={values['hf_token']}",
        f"db.password={values['db_password']}",
        f"source=s3://key:{values['source_password']}@bucket/x",
        f"mirrors=['https://a:{values['mirror_password']}@m/1', 'https://m/2?token={values['mirror_token']}']",
        f"note=use {values['NOTED_TOKEN']} for it",
    ]
    done = workplace.mltrain("train", "secretive.py", *given, "kill_at=14", **environment)
    assert done.code == -9
    asked = workplace.mltrain("train", "--resume-run", done.run_id, "kill_at=0", **environment)
    assert asked.code == 2
    assert "MLTRAIN_" in asked.err
    failed = workplace.mltrain("train", "secretive.py", *given, "raising=yes", **environment)
    assert failed.code == 1
    assert "cannot log in with" in failed.err
    taken = {
        "MLTRAIN_API_KEY": values["api_key"],
        "MLTRAIN_HF_TOKEN": values["hf_token"],
        "MLTRAIN_DB__PASSWORD": values["db_password"],
    }
    resumed = workplace.mltrain("train", "--resume-run", done.run_id, "kill_at=0", *given[3:], **environment, **taken)
    assert resumed.code == 0, resumed.err
    elsewhere = workplace.mltrain("runs", MLFLOW_TRACKING_URI=f"http://me:{values['tracking_password']}@127.0.0.1:9")
    assert elsewhere.code == 6
    texts = [text for one in (done, asked, failed, resumed, elsewhere) for text in (one.out, one.err)]
    assert found_in(workplace.folder, values, *texts) == set()
    params = MlflowClient(workplace.uri).get_run(done.run_id).data.params
    assert (params["api_key"], params["db.password"], params["source"]) == (
        REDACTED,
        REDACTED,
        f"s3://{REDACTED}@bucket/x",
    )


class Secretive(Config):
    api_key: str = ""
    token: SecretStr = SecretStr("nothing to see")
    tokenizer: str = "bert"
    place: str = ""


def test_a_recorded_configuration_asks_for_its_secrets_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Secretive.load(overrides={"api_key": "abcdef123", "tokenizer": "t5"})
    recorded = config.resolved()
    assert (recorded["api_key"], recorded["token"], recorded["tokenizer"]) == (REDACTED, DEFAULT, "t5")
    with pytest.raises(ConfigError, match="MLTRAIN_API_KEY"):
        Secretive.load(base=recorded)
    assert Secretive.load(base=recorded, overrides={"api_key": "other77"}).api_key == "other77"
    monkeypatch.setenv("MLTRAIN_API_KEY", "from the environment")
    again = Secretive.load(base=recorded)
    assert (again.api_key, again.token.get_secret_value()) == ("from the environment", "nothing to see")
    assert again.changes_from(recorded) == {}


def test_a_uri_with_a_password_has_to_be_given_again() -> None:
    recorded = Secretive.load(overrides={"place": "https://me:hidden99@host/x"}).resolved()
    assert recorded["place"] == f"https://{REDACTED}@host/x"
    with pytest.raises(ConfigError, match="place was recorded without its secret"):
        Secretive.load(base=recorded)


@pytest.mark.parametrize(
    "name", ["password", "API_KEY", "hfToken", "db.passwd", "aws_secret_access_key", "client-secret"]
)
def test_names_that_tell_of_a_secret(name: str) -> None:
    assert is_secret(name, "")


@pytest.mark.parametrize("name", ["tokenizer", "max_tokens", "keyboard", "secretary", "monkey", "lr", "author", "key"])
def test_names_that_only_sound_alike(name: str) -> None:
    assert not is_secret(name, "")


SPECIAL = [
    *(
        f"{word}_token"
        for word in ("mask", "pad", "eos", "bos", "unk", "sep", "cls", "special", "image", "decoder_start")
    ),
    *(
        "tokenizer.mask_token",
        "maskToken",
        "additional_special_tokens",
        "num_tokens",
        "pad_token_id",
        "max_tokens_per_batch",
    ),
]


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("value", ["[MASK]", "<extra_id_0>", "<|endoftext|>", "pad", "</s>", "#!END#!"])
def test_a_token_of_a_tokenizer_is_no_secret(name: str, value: str) -> None:
    assert not is_secret(name, value)


@pytest.mark.parametrize("name", ["speaker_token", "token_dropout", "token_type", "private_key_frames", "secret_santa"])
def test_where_the_name_does_not_tell_a_value_that_is_hard_to_guess_is_a_secret(name: str) -> None:
    assert not is_secret(name, "alice")
    assert not is_secret(name, "<speaker_01>")
    assert is_secret(name, secrets.token_hex(16))


@pytest.mark.parametrize("name", ["token", "hf_token", "api_token", "db_password", "GITHUB_TOKEN", "password_2"])
def test_where_the_name_tells_even_a_word_is_a_secret(name: str) -> None:
    assert is_secret(name, "mlflow")


class Tokenizing(Config):
    mask_token: str = "[MASK]"
    eos_token: str | None = None
    token_type: str = "word"
    hf_token: str = ""


def test_a_recorded_token_of_a_tokenizer_is_not_asked_for() -> None:
    config = Tokenizing.load(overrides={"mask_token": "<extra_id_0>", "eos_token": "</s>", "token_type": "char"})
    assert Tokenizing.load(base=config.resolved()) == config


EVERYDAY = [
    "mlflow",
    "training",
    "postgres",
    "segmentation",
    "password",
    "resnet50",
    "mlflow_data",
    "model-v1",
    "train2024",
]


@pytest.mark.parametrize("value", EVERYDAY)
def test_an_everyday_password_takes_no_word_out_of_what_a_resume_needs(value: str) -> None:
    remember_environment({"POSTGRES_PASSWORD": value, "DATABASE_URL": f"postgresql://me:{value}@db/{value}"})
    Secretive.load(overrides={"api_key": value})
    config = Tokenizing.load(
        overrides={"run_name": value, "model_save_path": f"/data/{value}", "experiment": f"a {value} b"}
    )
    assert Tokenizing.load(base=config.resolved()) == config
    said = f"{value} ui --backend-store-uri sqlite:////home/{value}.db"
    assert redacted(said) == said
    assert redacted(f"postgresql://me:{value}@db/{value}") == f"postgresql://{REDACTED}@db/{value}"
    assert Secretive.load(overrides={"api_key": value}).resolved()["api_key"] == REDACTED


def test_a_password_that_is_hard_to_guess_is_taken_out_of_all_text() -> None:
    for value in (
        secrets.token_hex(8),
        secrets.token_hex(16),
        "x7#Kp2!q",
        "correct-horse-battery-staple",
        "Training1!",
    ):
        remember_environment({"POSTGRES_PASSWORD": value})
        assert redacted(f"log in as me:{value}, please") == f"log in as me:{REDACTED}, please"


def test_an_everyday_password_in_the_environment_changes_nothing_of_a_training(workplace: Workplace) -> None:
    place = workplace.folder / "training_data"
    place.mkdir()
    environment = {"POSTGRES_PASSWORD": "mlflow", "DB_PASSWORD": "training", "HF_TOKEN": "tiny"}
    done = workplace.mltrain("train", "tiny.py", "epochs=1", f"data={place}", "run_name=a training", **environment)
    assert done.code == 0, done.err
    resumed = workplace.mltrain("train", "--resume-run", done.run_id, "epochs=2", **environment)
    assert resumed.code == 0, resumed.err
    run = MlflowClient(workplace.uri).get_run(done.run_id)
    assert (run.data.params["data"], run.info.run_name) == (str(place), "a training")
    assert REDACTED not in done.out + done.err + resumed.out + resumed.err + str(run.to_dictionary())


def test_what_is_remembered_is_found_quoted_too() -> None:
    remember(["p@ss/word!"])
    assert redacted("x p@ss/word! y p%40ss%2Fword%21") == f"x {REDACTED} y {REDACTED}"


def test_names_and_notes_do_nothing_to_a_terminal_or_a_browser(workplace: Workplace) -> None:
    name = "\x1b]0;owned\x07<script>alert(1)</script>"
    done = workplace.mltrain("train", "tiny.py", "epochs=1", "--name", name)
    assert done.code == 0, done.err
    runs = workplace.mltrain("runs")
    assert "\x1b" not in done.out + done.err + runs.out + runs.err
    assert "owned" in runs.out
    note = MlflowClient(workplace.uri).get_run(done.run_id).data.tags["mlflow.note.content"]
    assert "<" not in note


def test_a_place_is_no_secret_whatever_its_variable_is_called(tmp_path: Path) -> None:
    remember_environment({"PWD": str(tmp_path), "GOOGLE_APPLICATION_CREDENTIALS": __file__, "DB_PWD": "hunter2hunter2"})
    said = f"{tmp_path}/mlflow.db {__file__} hunter2hunter2"
    assert redacted(said) == f"{tmp_path}/mlflow.db {__file__} {REDACTED}"
