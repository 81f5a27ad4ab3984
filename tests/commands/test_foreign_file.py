"""mltrain reads foreign files without running their code."""

from pathlib import Path

import pytest
import torch

from mltrain.commands.foreign_file import read
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
    assert "args" in found.ignored


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
