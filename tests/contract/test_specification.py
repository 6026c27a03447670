"""CONTRACT.md says what training writes: the frozen run and the configuration hold nothing that it does not name."""

from __future__ import annotations

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
