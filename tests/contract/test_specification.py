"""CONTRACT.md says what training writes: the frozen run and the configuration hold nothing that it does not name."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pico_contract import lock
from pico_train.config import OperationMark, Section
from pico_train.run import RunConfig
from pico_train.trainer.manifest import CONDITIONS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "shared" / "CONTRACT.md").read_text(encoding="utf-8")
RUN = Path(__file__).parent / "fixtures" / "run_v1"
LITERALS = set(re.findall(r"`([^`\n]+)`", TEXT))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
RULES = re.findall(r"^- \*\*(C\d+\.\d+)\*\* ", TEXT, re.MULTILINE)

CITED_BY = {
    "C2.1": "test_a_directory_that_is_no_run_is_explained",
    "C2.6": "test_a_status_of_a_later_version_is_counted",
    "C3.10": "test_identity_changes_are_refused_by_name_and_operation_changes_are_recorded",
    "C3.11": "test_the_frozen_configuration_is_read_and_is_what_it_was",
    "C3.12": "test_both_names_in_a_file_are_refused",
    "C4.2": "test_a_method_that_would_save_other_tensors_is_refused_before_training",
    "C4.3": "test_a_run_of_a_changed_decoder_works_and_never_says_llama",
    "C4.4": "test_a_stock_model_is_not_opened_by_a_changed_decoder",
    "C4.5": "test_nothing_is_missing_unexpected_or_reinitialised",
    "C4.6": "test_tied_head_is_the_embedding",
    "C4.7": "test_a_resume_names_the_file_and_the_tensor",
    "C4.9": "test_training_keeps_what_the_policy_says_and_loses_no_observation",
    "C4.10": "test_what_is_not_there_is_named_with_what_is",
    "C4.11": "test_what_a_snapshot_holds",
    "C4.12": "test_what_a_snapshot_holds",
    "C4.13": "test_a_restart_that_was_not_observed_leaves_its_windows_missing_and_is_said",
    "C5.1": "test_after_a_failure_nothing_is_written_and_every_call_raises_it",
    "C7.1": "test_checkpoints_without_their_manifest_are_not_continued_as_another_run",
    "C8.1": "test_damage_is_named_by_verify_and_refused_by_a_run",
    "C8.2": "test_ids_beyond_the_vocabulary_are_refused_where_they_are_read",
    "C8.3": "test_there_is_something_to_observe",
    "C8.4": "test_a_damaged_shard_of_a_directory_is_named",
    "C11.1": "test_options_that_cannot_be_measured_are_refused",
    "C11.2": "test_what_was_measured_beyond_the_resumed_step_is_dropped",
    "C11.3": "test_an_observed_run_equals_an_unobserved_one",
    "C11.4": "test_an_observed_run_equals_an_unobserved_one",
}
"""Rule -> the test outside this folder that checks it; tests of this folder cite the rules themselves."""

NOT_CHECKABLE = {
    "C6.1": "the file system that several hosts share is not part of the program",
    "C10.1": "the clocks of other hosts are not part of the program",
}
"""Rule -> why no test can check it."""


def operation_fields(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, info in section.model_fields.items():
        inner = info.annotation if isinstance(info.annotation, type) and issubclass(info.annotation, Section) else None
        if any(isinstance(mark, OperationMark) for mark in info.metadata):
            yield f"{prefix}{name}.*" if inner else f"{prefix}{name}"
        elif inner:
            yield from operation_fields(inner, f"{prefix}{name}.")


def test_the_operation_fields_are_those_of_the_specification() -> None:
    listed = TEXT.split("Operation fields MAY change from session to session: ")[1].split(". All other fields")[0]
    assert set(re.findall(r"`([^`]+)`", listed)) == set(operation_fields(RunConfig))


def test_the_conditions_of_bit_identity_are_those_of_the_specification() -> None:
    listed = TEXT.split("bit for bit between sessions that agree")[1].split(".")[0]
    assert tuple(re.findall(r"`([^`]+)`", listed)) == CONDITIONS


def test_every_key_that_training_writes_is_named() -> None:
    manifest = json.loads((RUN / "run.json").read_text())
    rows = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    scalars = json.loads((RUN / "checkpoints/step_00000002/state/scalars.json").read_text())
    written = [manifest, *manifest["sessions"], manifest["data"], manifest["seeds"], *rows, scalars]
    keys = {key for entry in [*written, scalars["counters"]] for key in entry}
    assert len(keys) > 35
    assert keys <= LITERALS


@pytest.mark.parametrize("path", sorted(RUN.rglob("*")), ids=lambda path: path.relative_to(RUN).as_posix())
def test_every_file_that_training_writes_is_in_the_tree(path: Path) -> None:
    tree = TEXT.split("```")[1]
    known = re.sub(r"step_\d+", "step_00001000", path.relative_to(RUN).as_posix()).split("/")
    assert known[0] in re.findall(r"^(\w[\w.]*)", tree, re.MULTILINE)
    if path.is_file():
        assert known[-1] in tree or re.fullmatch(r"\w+-[0-9a-f]{8}\.json", known[-1])


def test_the_age_of_a_stale_lock_is_that_of_the_specification() -> None:
    assert f"`heartbeat` is older than {lock.STALE_SECONDS:.0f} seconds" in TEXT


def cited(path: Path) -> set[str]:
    """The rules that docstrings of a file of tests name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {rule for node in functions for rule in re.findall(r"\bC\d+\.\d+\b", ast.get_docstring(node) or "")}


def test_rules_are_numbered_within_their_section_and_in_order() -> None:
    sections = re.split(r"^## (\d+)\. ", TEXT, flags=re.MULTILINE)[1:]
    for number, text in zip(sections[::2], sections[1::2], strict=True):
        found = re.findall(r"^- \*\*(C\d+\.\d+)\*\* ", text, re.MULTILINE)
        assert found == [f"C{number}.{i}" for i in range(1, len(found) + 1)]
    assert len(RULES) > 40


def test_every_must_belongs_to_a_numbered_rule() -> None:
    body = TEXT.split("## 1. ", 1)[1]
    for paragraph in re.split(r"\n(?=- |\n)", body):
        if re.search(r"\bMUST\b", paragraph):
            assert re.match(r"\n*- \*\*C\d+\.\d+\*\*", paragraph), paragraph


def test_every_rule_is_cited_by_a_test_or_named_as_one_that_no_test_can_check() -> None:
    here = set().union(*map(cited, Path(__file__).parent.glob("test_*.py")))
    assert here <= set(RULES)
    assert sorted(set(RULES) - here - set(CITED_BY)) == sorted(NOT_CHECKABLE)
    assert set(CITED_BY) <= set(RULES)


def test_the_tests_that_rules_are_cited_by_are_there() -> None:
    defined = {name for path in TESTS for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    assert sorted(set(CITED_BY.values()) - defined) == []


def test_every_module_of_the_contract_has_tests_of_its_name() -> None:
    modules = {path.stem for path in (ROOT / "shared" / "pico_contract").glob("*.py")} - {"__init__"}
    tests = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert sorted(modules - tests) == []
