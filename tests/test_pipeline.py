"""Declarations of a pipeline: order and configurations of its stages."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mltrain
from mltrain.errors import ConfigError, UsageError
from mltrain.pipeline import Pipeline, Stage


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
    with pytest.raises(UsageError, match=r"needs 'motoin', which does not exist. Did you mean 'motion'\?"):
        Pipeline("p", [trained("motion"), trained("end", "motoin")])


def test_two_stages_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two stages 'a'"):
        Pipeline("p", [trained("a"), trained("a")])


@pytest.mark.parametrize("name", ["", "A", "a b", "../a", "a.b", "1a", "a" * 65])
def test_names_that_could_be_mistaken_for_something_else_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"The stage name .* is invalid"):
        trained(name)
    with pytest.raises(UsageError, match=r"The pipeline name .* is invalid"):
        Pipeline(name, [])


def test_a_stage_is_a_training_or_makes_files() -> None:
    for both in ({}, {"build": build, "make": make}):
        with pytest.raises(UsageError, match="Expected either build="):
            Stage("a", Config, **both)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["lr", "no_match_message"])
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


def test_an_unknown_key_of_a_known_stage_names_the_nearest_key_of_that_stage() -> None:
    with pytest.raises(ConfigError) as caught:
        CHAIN.configs(overrides={"one.lrr": "1"})
    assert str(caught.value) == "Unknown key 'one.lrr': the stage 'one' has no key 'lrr'. Did you mean 'lr'?"


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
    file.write_text("no_match_message:\n  lr: 0.5\n")
    with pytest.raises(UsageError, match="no stage 'no_match_message'"):
        pipeline.configs()
