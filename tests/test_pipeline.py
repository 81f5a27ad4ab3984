"""What a pipeline declares, in what order its stages run, and what is decided about each: all without doing anything."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mltrain
from mltrain.errors import ConfigError, UsageError
from mltrain.pipeline import Changes, Found, Mode, Pipeline, Recipe, Record, Stage, changes, decide, preferred


class Config(mltrain.Config):
    lr: float = 1e-3
    data: Path | None = None
    before: Path | None = None
    other: Path | None = None


class Labelled(Config):
    label: str = "a"


def make(config: Any, folder: Path) -> Mapping[str, float]:
    raise AssertionError("nothing is made by looking at a pipeline")


def build(config: Any) -> mltrain.Task:
    raise AssertionError("nothing is built by looking at a pipeline")


def trained(name: str, *needed: str, config: type[mltrain.Config] = Config) -> Stage:
    return Stage(name, config, build=build, needs=dict(zip(("before", "other", "data"), needed, strict=False)))


def names(pipeline: Pipeline) -> list[str]:
    return [stage.name for stage in pipeline.stages]


CHAIN = Pipeline("chain", [Stage("files", Config, make=make), trained("one", "files"), trained("two", "one", "files")])
MODEL = CHAIN.stage("one")
FILES = CHAIN.stage("files")


def test_stages_run_after_what_they_need_and_else_as_they_are_listed() -> None:
    late_first = Pipeline("p", [trained("end", "left", "right"), trained("right"), trained("left")])
    assert names(late_first) == ["right", "left", "end"]


@given(st.permutations(range(6)), st.data())
def test_every_order_of_the_declaration_gives_an_order_that_can_be_run(order: list[int], data: st.DataObject) -> None:
    needs = {n: data.draw(st.lists(st.integers(0, n - 1), max_size=3, unique=True)) if n else [] for n in range(6)}
    pipeline = Pipeline("p", [trained(f"s{n}", *(f"s{m}" for m in needs[n])) for n in order])
    done: set[str] = set()
    for stage in pipeline.stages:
        assert set(stage.needs.values()) <= done
        done.add(stage.name)
    assert len(done) == 6


@pytest.mark.parametrize(
    "stages", [[trained("a", "a")], [trained("a", "b"), trained("b", "c"), trained("c", "a"), trained("d")]]
)
def test_stages_that_need_each_other_in_a_circle_are_refused(stages: list[Stage]) -> None:
    with pytest.raises(UsageError, match="in a circle: a needs"):
        Pipeline("p", stages)


def test_a_stage_that_is_needed_and_missing_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"needs 'motoin', which is no stage. Did you mean 'motion'\?"):
        Pipeline("p", [trained("motion"), trained("end", "motoin")])


def test_two_stages_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two stages 'a'"):
        Pipeline("p", [trained("a"), trained("a")])


@pytest.mark.parametrize("name", ["", "A", "a b", "../a", "a.b", "1a", "a" * 65])
def test_names_that_could_be_mistaken_for_something_else_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not a name of a stage"):
        trained(name)
    with pytest.raises(UsageError, match="is not a name of a pipeline"):
        Pipeline(name, [])


def test_a_stage_is_a_training_or_makes_files() -> None:
    for both in ({}, {"build": build, "make": make}):
        with pytest.raises(UsageError, match="one of the two"):
            Stage("a", Config, **both)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["lr", "none_such"])
def test_what_is_handed_on_goes_into_a_field_that_names_a_place(key: str) -> None:
    with pytest.raises(UsageError, match=f"no field {key}: Path"):
        Stage("a", Config, build=build, needs={key: "b"})


def test_what_builds_on_a_stage_is_found_through_others() -> None:
    assert CHAIN.after("files") == {"files", "one", "two"}
    assert CHAIN.after("one") == {"one", "two"}
    with pytest.raises(UsageError, match=r"no stage 'tow'. Did you mean 'two'\?"):
        CHAIN.after("tow")


def test_a_key_is_for_all_stages_that_have_it_and_one_with_a_stage_counts_more() -> None:
    pipeline = Pipeline("p", [trained("a"), trained("b", config=Labelled)])
    configs = pipeline.configs(overrides={"b.lr": "0.3", "lr": "0.2", "label": "z"})
    assert [configs[name].lr for name in "ab"] == [0.2, 0.3]  # type: ignore[attr-defined]
    assert configs["b"].label == "z"  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["lrr", "one.lrr", "none.lr"])
def test_an_unknown_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"Unknown key {key!r}"):
        CHAIN.configs(overrides={key: "1"})


@pytest.mark.parametrize("key", ["before", "one.before"])
def test_a_key_that_the_pipeline_gives_is_refused_and_use_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match="--use files=RUN_ID"):
        CHAIN.configs(overrides={key: "/elsewhere"})


def test_a_file_has_a_section_a_stage_and_presets_of_them(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("one:\n  lr: 0.5\npresets:\n  quick:\n    one:\n      epochs: 1\n    two:\n      epochs: 2\n")
    pipeline = replace(CHAIN, config_file=file)
    configs = pipeline.configs(preset="quick", overrides={"two.epochs": "7"})
    assert (configs["one"].lr, configs["one"].epochs, configs["two"].epochs) == (0.5, 1, 7)  # type: ignore[attr-defined]
    again = pipeline.configs(base={name: config.resolved() for name, config in configs.items()})
    assert again == configs
    with pytest.raises(ConfigError, match=r"no preset 'quik'.*quick"):
        pipeline.configs(preset="quik")
    file.write_text("none_such:\n  lr: 0.5\n")
    with pytest.raises(UsageError, match="no stage 'none_such'"):
        pipeline.configs()


def recipe(**given: Any) -> tuple[Record, Recipe]:
    """A run, and what is wanted now, which differs in what is given."""
    config = Config()
    record = Record(config.resolved(), {"before": "d1"}, {"data": "f1"}, "c1")
    wanted = Recipe(Config(**given.pop("config", {})), {"before": "d1"}, {"data": "f1"}, "c1")
    return record, replace(wanted, **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"config": {"lr": 0.5}}, "lr 0.001 → 0.5"),
        ({"config": {"epochs": 11}}, "epochs 10 → 11"),
        ({"config": {"seed": 3}}, "seed 0 → 3"),
        ({"inputs": {"before": "d2"}}, "another input before"),
        ({"data": {"data": "f2"}}, "other data in data"),
        ({"data": {}}, "other data in data"),
        ({"code": "c2"}, "other code"),
    ],
)
def test_what_an_output_follows_from_is_noticed(given: dict[str, Any], said: str) -> None:
    found = changes(*recipe(**given))
    assert found
    assert str(found) == said


@pytest.mark.parametrize(
    "given", [{"device": "cpu"}, {"save_interval": 0}, {"max_to_keep": 9}, {"run_name": "x"}, {"before": Path("/b")}]
)
def test_what_leaves_the_outcome_alone_is_no_change(given: dict[str, Any]) -> None:
    assert not changes(*recipe(config=given))


DONE = Found("r", "finished", Changes())
LR, EPOCHS = Changes({"lr": ("1", "2")}), Changes({"epochs": ("3", "4")})
CODE, INPUT, DATA = Changes(code=True), Changes(inputs=["before"]), Changes(data=["data"])


@pytest.mark.parametrize(
    ("mode", "found", "action", "why"),
    [
        ("skip", None, "run", "no run"),
        ("resume", None, "run", "no run"),
        ("scratch", DONE, "run", "asked for"),
        ("skip", DONE, "skip", "intact"),
        ("resume", DONE, "skip", "intact"),
        ("skip", replace(DONE, changes=LR), "run", "lr 1 → 2"),
        ("resume", replace(DONE, changes=LR), "run", "lr 1 → 2"),
        ("skip", replace(DONE, changes=EPOCHS), "run", "epochs 3 → 4"),
        ("resume", replace(DONE, changes=EPOCHS), "resume", "epochs 3 → 4"),
        ("skip", replace(DONE, changes=CODE), "run", "other code"),
        ("resume", replace(DONE, changes=CODE), "skip", "other code"),
        ("skip", replace(DONE, changes=INPUT), "run", "another input"),
        ("resume", replace(DONE, changes=INPUT), "run", "another input"),
        ("resume", replace(DONE, changes=DATA), "run", "other data"),
        ("skip", replace(DONE, damage="x", recoverable=True), "resume", "damaged (x)"),
        ("resume", replace(DONE, damage="x", recoverable=False), "run", "damaged (x)"),
        ("skip", replace(DONE, state="stopped", where="epoch 2 of 3"), "resume", "stopped at epoch 2 of 3"),
        ("resume", replace(DONE, state="dead"), "resume", "dead"),
        ("skip", replace(DONE, state="dead", changes=LR), "run", "lr 1 → 2"),
        ("resume", replace(DONE, state="dead", changes=LR), "resume", "changed since: lr 1 → 2"),
        ("resume", replace(DONE, state="failed", changes=CODE), "resume", "other code"),
        ("resume", replace(DONE, state="failed", changes=INPUT), "run", "another input"),
        ("resume", Found("r", "dead", None), "run", "before it had recorded anything"),
    ],
)
def test_the_table_of_decisions(mode: Mode, found: Found | None, action: str, why: str) -> None:
    decision = decide(MODEL, found, mode)
    assert decision.action == action
    assert why in decision.why
    assert decision.run_id == (None if action == "run" else "r")


@pytest.mark.parametrize("state", ["finished", "dead"])
def test_files_of_another_configuration_are_never_continued(state: str) -> None:
    assert decide(FILES, Found("r", state, EPOCHS), "resume").action == "run"


def test_of_several_runs_a_finished_one_that_fits_is_preferred_and_then_one_that_can_be_continued() -> None:
    changed, half = replace(DONE, run_id="new", changes=LR), Found("half", "stopped", Changes())
    assert preferred(MODEL, [changed, half, DONE], "skip") == DONE
    assert preferred(MODEL, [changed, half], "skip") == half
    assert preferred(MODEL, [changed], "skip") == changed
    assert preferred(MODEL, [], "skip") is None
