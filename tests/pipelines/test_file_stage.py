"""A stage that makes files: their digests decide whether it is done."""

import pytest

from tests.support.example_pipelines import TinyPipeline
from tests.support.folders import flip


@pytest.mark.parametrize(
    ("stage", "file", "expected"),
    [
        ("numbers", "output/a01/parts/numbers.safetensors", ["resume", "skip", "skip"]),
        ("numbers", "output/a01/output.json", ["resume", "skip", "skip"]),
        ("first", "checkpoints/step-000000018-a01/model.safetensors", ["skip", "resume", "skip"]),
        ("second", "checkpoints/step-000000018-a01/model.safetensors", ["skip", "skip", "resume"]),
    ],
)
def test_a_damaged_output_counts_as_missing_and_is_made_again_bit_by_bit(
    stage: str, file: str, expected: list[str], tiny: TinyPipeline
) -> None:
    assert tiny("--mode", "skip").code == 0
    flip(tiny.artifacts(tiny.run_of(stage)) / file)
    assert tiny.status()[stage]["state"] == "damaged"
    assert list(tiny.actions("--mode", "skip").values()) == expected  # the same bits again: what follows stays
    assert tiny.states() == ["done"] * 3


def test_a_copy_on_this_machine_that_is_damaged_or_has_too_much_is_put_right(tiny: TinyPipeline) -> None:
    assert tiny("--mode", "skip", "epochs=1").code == 0
    (copy,) = (tiny.workplace.folder / "home").rglob("numbers.safetensors")
    flip(copy)
    (copy.parent / "stray").write_text("left by somebody")
    about = copy.parent.parent / "about.json"
    about.unlink()
    assert list(tiny.actions("--mode", "skip", "second.lr=0.5").values()) == ["skip", "skip", "run"]
    output = tiny.artifacts(tiny.run_of("numbers")) / "output" / "a01" / "parts" / "numbers.safetensors"
    assert copy.read_bytes() == output.read_bytes()
    assert about.is_file()
    assert not (copy.parent / "stray").exists()
