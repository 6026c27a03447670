"""What differs between arms, and within one, beyond seeds: from config.yaml and run.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pico_analyze.compare import compare
from pico_analyze.compare.arms import Arm
from pico_analyze.compare.notes import notes
from pico_contract.layout import RunLayout

from ...support.made_arms import Manifest, Measured, arm

pytestmark = pytest.mark.slow  # half a minute and more for the whole file

CONFIG: dict[str, Any] = {
    "name": "x",
    "runs_dir": "runs",
    "seed": {"init": 0, "data": 0, "method": 0},
    "optimizer": {"name": "adamw", "lr": 3e-3, "betas": [0.9, 0.999]},
    "schedule": {"name": "cosine", "warmup_steps": 30},
    "train": {"steps": 10, "precision": "fp32", "threads": 1},
    "method": {"name": "plain", "options": {"rank": 8}},
    "snapshot": {"every": 5},
    "log": {"every": 1},
    "init_from": None,
}
SESSION = {"host": "h", "device": "cpu", "precision": "fp32", "commit": "a" * 40, "packages": {"torch": "2.13.0"}}


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return config | {first: changed(config[first], rest, value) if rest else value}


@pytest.fixture
def arms(tmp_path: Path) -> list[Arm]:
    """Two arms of three seeds of one configuration."""
    made = [arm("a", 0.1, 0.25, 0.4), arm("b", 1.1, 1.3, 1.6)]
    for run in each(made):
        run.configure(tmp_path, CONFIG)
        run.manifest.sessions = [dict(SESSION)]
    return made


def each(arms: list[Arm]) -> Iterator[Any]:
    yield from (run for made in arms for run in made.runs)


def rewrite(run: Any, key: str, value: Any) -> None:
    import yaml

    config = changed(yaml.safe_load(run.layout.config.read_text()), key, value)
    run.layout.config.write_text(yaml.safe_dump(config))


def said(arms: list[Arm]) -> list[str]:
    return notes(arms, compare(arms))


def test_arms_of_one_configuration_are_said_to_differ_in_seeds(arms: list[Arm]) -> None:
    found = said(arms)
    assert found[0] == (
        '"b" and "a" have one configuration, as far as it is recorded: a difference between them is one of seeds.'
    )
    assert "Equal parameters: 100." in found
    assert "Equal tokens read at step 10: 1,000." in found


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optimizer.lr", 1e-3, "optimizer.lr (0.001 instead of 0.003)"),
        ("optimizer.name", "muon", "optimizer.name (muon instead of adamw)"),
        ("optimizer.betas", [0.9, 0.95], "optimizer.betas ([0.9, 0.95] instead of [0.9, 0.999])"),
        ("schedule.warmup_steps", 60, "schedule.warmup_steps (60 instead of 30)"),
        ("train.precision", "bf16", "train.precision (bf16 instead of fp32)"),
        ("train.steps", 20, "train.steps (20 instead of 10)"),
        ("method.options.rank", 16, "method.options.rank (16 instead of 8)"),
        ("method.options.alpha", 16, "method.options.alpha (16 instead of not set)"),
        ("schedule", {"name": "cosine"}, "schedule.warmup_steps (not set instead of 30)"),
        ("init_from", "pre@10", "init_from (pre@10 instead of not set)"),
    ],
)
def test_a_difference_of_configuration_comes_first(arms: list[Arm], key: str, value: Any, words: str) -> None:
    for run in arms[1].runs:
        rewrite(run, key, value)
    assert said(arms)[0] == f'"b" differs from "a" in {words}.'


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.lr", 1e-3),
        ("schedule.name", "linear"),
        ("train.precision", "bf16"),
        ("train.steps", 20),
        ("method.options.rank", 16),
        ("init_from", "pre@10"),
    ],
)
def test_an_arm_that_mixes_configurations_is_warned_of_first_and_has_no_interval(
    arms: list[Arm], key: str, value: Any
) -> None:
    rewrite(arms[0].runs[1], key, value)
    found = compare(arms)
    assert set(found["status"]) == {"mixed"}
    assert found[["low", "high", "effect_size", "p_max_t", "interval"]].isna().all(axis=None)
    first = notes(arms, found)[0]
    assert first.startswith(f'WARNING: "a" mixes configurations: its runs differ in {key} (a0: ')
    assert f"; a1: {value};" in first


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"fingerprint": "g", "order": "shuffled"}}, "data.fingerprint (a0: f; a1: g; a2: f)"),
        ({"method": "relora"}, "method.name"),
        ({"sessions": [SESSION | {"precision": "bf16"}]}, "precision (a0: fp32; a1: bf16; a2: fp32)"),
        ({"sessions": [SESSION | {"modules": {"mine": "b" * 64}}]}, "modules.mine"),
    ],
)
def test_run_json_shows_a_mixture_too(arms: list[Arm], change: dict[str, Any], words: str) -> None:
    for run in arms[0].runs:
        run.layout = None  # no config.yaml
        run.manifest.sessions[0]["modules"] = {"mine": "a" * 64}
    vars(arms[0].runs[1].manifest).update(change)  # type: ignore[attr-defined]
    if "sessions" in change:
        session: dict[str, Any] = arms[0].runs[1].manifest.sessions[0]  # type: ignore[attr-defined]
        session.setdefault("modules", {"mine": "a" * 64})
    first = said(arms)[0]
    assert first.startswith('WARNING: "a" mixes configurations')
    assert words in first


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "y"), ("runs_dir", "else"), ("log.every", 7), ("train.threads", 4), ("seed.init", 9), ("hub", {"a": 1})],
)
def test_operation_and_seeds_are_no_difference(arms: list[Arm], key: str, value: Any) -> None:
    rewrite(arms[0].runs[1], key, value)
    assert "have one configuration" in said(arms)[0]


def test_what_may_differ_between_seeds_is_listed(arms: list[Arm]) -> None:
    rewrite(arms[0].runs[1], "snapshot.every", 2)
    arms[0].runs[2].manifest.sessions = [SESSION, SESSION | {"commit": "b" * 40}]  # type: ignore[attr-defined]
    found = said(arms)
    sentence = next(one for one in found if one.startswith('Runs of "a" differ in '))
    assert "snapshot.every (a0: 5; a1: 2; a2: 5)" in sentence
    assert f"commit (a0: {'a' * 12}; a1: {'a' * 12}; a2: {'a' * 12}, then {'b' * 12})" in sentence
    assert "WARNING" not in "".join(found)


def test_arms_that_were_trained_elsewhere_are_said_to_be(arms: list[Arm]) -> None:
    for run in arms[1].runs:
        run.manifest.sessions = [SESSION | {"packages": {"torch": "2.14.0"}, "dirty": "d" * 64}]  # type: ignore
    found = said(arms)
    words = '"b" was trained in another environment than "a": packages.torch (2.14.0 instead of 2.13.0).'
    assert words in found
    assert "The code of b0, b1, b2 is in no commit: its working tree had changes." in found


def test_what_follows_from_a_difference_is_listed(arms: list[Arm]) -> None:
    for run in each(arms[1:]):
        run.manifest.parameters, run.per_step = {"total": 1050}, 50
    found = said(arms)
    assert "Unequal parameters (a: 100; b: 1,050)." in found
    assert "Unequal tokens read at step 10 (a: 1,000; b: 500)." in found


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00", "&a [*a, *a", "{" * 3000])
def test_a_config_that_cannot_be_read_is_named_and_the_rest_is_compared(arms: list[Arm], text: str) -> None:
    run: Any = arms[0].runs[1]
    run.layout.config.write_text(text)
    found = said(arms)
    assert any(str(run.layout.config) in one for one in found)
    assert set(compare(arms)["status"]) == {"ok"}


def test_bytes_that_are_no_text_are_named(arms: list[Arm]) -> None:
    run: Any = arms[0].runs[1]
    run.layout.config.write_bytes(b"\xff\xfe\xff")
    assert any(str(run.layout.config) in one and "UTF-8" in one for one in said(arms))


def test_geometry_of_foreign_series_is_compared() -> None:
    made = [arm("a", 0.1, seeds=(None,)), arm("b", 1.1, seeds=(None,))]
    made[1].runs[0].model["hidden_size"] = 16  # type: ignore[index]
    assert said(made)[0] == '"b" differs from "a" in model.hidden_size (16 instead of 8).'


def test_a_source_without_config_yaml_says_so(tmp_path: Path) -> None:
    run = Measured("r", Manifest({"init": 0}), layout=RunLayout(tmp_path))
    from pico_analyze.compare.run_facts import read_facts

    facts = read_facts(run)
    assert not facts.configured
    assert facts.problem == ""
    assert facts.configuration["data.fingerprint"] == "f"


def test_runs_that_did_not_finish_are_named(arms: list[Arm]) -> None:
    run: Any = arms[1].runs[2]
    run.manifest.status, run.manifest.step = "failed", 7
    assert any(one.startswith('1 of 3 runs of "b" did not finish: b2 (failed at step 7).') for one in said(arms))
