"""mltrain reads foreign files without running their code."""

import os
import zipfile
from pathlib import Path

import pytest
import torch

from mltrain.commands.foreign_file import finite, read
from mltrain.errors import DamagedCheckpoint, UsageError


def test_weights_optimizer_and_epoch_are_found_and_the_rest_is_named(tmp_path: Path) -> None:
    weights = {"layer.weight": torch.arange(4.0)}
    torch.save(
        {"state_dict": weights, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3, "args": 1},
        tmp_path / "a.pth",
    )
    found = read(tmp_path / "a.pth")
    assert found.model["layer.weight"].equal(weights["layer.weight"])
    assert found.optimizer == {"state": {}, "param_groups": []}
    assert found.epoch == 3
    assert "args: unknown key" in found.ignored


def test_bare_weights_are_weights(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.ones(2)}, tmp_path / "a.pt")
    assert set(read(tmp_path / "a.pt").model) == {"layer.weight"}


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Code()}, tmp_path / "a.pth")
    with pytest.raises(DamagedCheckpoint):
        read(tmp_path / "a.pth")
    assert "executed" not in capsys.readouterr().out


def test_a_whole_model_is_refused_with_what_it_asks_to_run_and_without_the_advice_to_run_it(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(DamagedCheckpoint) as refused:
        read(tmp_path / "whole.pth")
    said = str(refused.value)
    assert said.isprintable()
    assert "(it asks for torch.nn.modules.linear.Linear). Expected tensors and plain values. Try: torch.save(" in said
    assert "[1m" not in said
    assert "options" not in said


def test_a_long_message_of_torch_is_not_cut_within_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object, **named: object) -> None:
        raise RuntimeError("\x1b[1mbroken\x1b[0m " + "parts " * 200)

    (tmp_path / "a.pth").write_bytes(b"no checkpoint")
    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint: broken parts [parts ]*parts …$"):
        read(tmp_path / "a.pth")


def test_what_is_no_file_or_holds_no_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    for file, message in (
        (tmp_path / "a.pth", "no weights"),
        (tmp_path, "is a folder"),
        (tmp_path / "b.pth", "no file"),
    ):
        with pytest.raises(UsageError, match=message):
            read(file)


def test_a_value_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    weights = {"w": torch.ones(1)}
    optimizers = [{"state": {}, "param_groups": []}] * 2
    for key, value, expected in (
        ("epoch", "seven", ["epoch: unreadable value"]),
        ("epoch", -1, ["epoch: unreadable value"]),
        ("epoch", 10**15, ["epoch: unreadable value"]),
        ("step", float("nan"), ["step: unreadable value"]),
        ("history", "elsewhere", ["history: unreadable value"]),
        ("optimizer", optimizers, ["optimizer: 1 after the first"]),
        ("epoch", 0, []),
        ("epoch", 7.0, []),
        ("epoch", torch.tensor(7), []),
        ("optimizer", None, []),
        ("epoch", torch.tensor(0), []),
    ):
        torch.save({"model": weights, key: value}, tmp_path / "a.pth")
        assert read(tmp_path / "a.pth").ignored == expected, (key, value)
    torch.save({"model": {**weights, "_extra_state": None}}, tmp_path / "a.pth")
    assert read(tmp_path / "a.pth").ignored == ["model._extra_state: no tensor"]


def test_another_kind_of_file_is_not_reported_as_code(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"model": {"w": torch.ones(64)}}, file)
    whole = file.read_bytes()
    weights = torch.ones(64)
    torch.save({"model": {"w": weights}}, file, _use_new_zipfile_serialization=False)
    old, key = file.read_bytes(), str(weights.untyped_storage()._cdata).encode()
    for content, message in (
        (b"", "it is empty"),
        (b"<html>404</html>", "another kind of file"),
        (b"hello", "another kind of file"),
        (whole[: len(whole) // 2], "corrupted"),
        (whole.replace(b"PK\x01\x02", b"PK\x01\x03"), "central directory"),
        (old.replace(key, b"9" * len(key), 1), "storage key"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Try: git lfs pull"),
    ):
        file.write_bytes(content)
        with pytest.raises(DamagedCheckpoint, match=message):
            read(file)


def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**24)
    with pytest.raises(DamagedCheckpoint, match="far larger than the file"):
        read(tmp_path / "a.pth")
    torch.save({"w": torch.zeros(1).expand(10**13)}, tmp_path / "b.pth")
    with pytest.raises(DamagedCheckpoint, match=r"far larger than their memory: model\.w"):
        finite(tmp_path / "b.pth")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(UsageError, match="is a pipe"):
        read(tmp_path / "a.pth")


def test_a_program_of_torchscript_is_refused_without_the_advice_to_run_it(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt", "a") as archive:
        archive.writestr("a/constants.pkl", b"")  # by which torch.load knows them
    with pytest.raises(DamagedCheckpoint, match=r"TorchScript program, which is code\.$"):
        read(tmp_path / "a.pt")
