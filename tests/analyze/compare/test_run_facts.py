"""What is known of a run from config.yaml and run.json."""

from __future__ import annotations

from collections.abc import Iterator

from pico_analyze.compare.run_facts import NOT_COMPARED
from pico_train.config import OperationMark
from pico_train.run import RunConfig
from pydantic import BaseModel


def test_keys_that_are_not_compared_are_those_that_training_calls_operation() -> None:
    marked = set(operation(RunConfig, ""))
    assert set(NOT_COMPARED) - marked == {"name", "seed"}
    assert marked <= set(NOT_COMPARED)


def operation(section: type[BaseModel], under: str) -> Iterator[str]:
    for name, info in section.model_fields.items():
        if any(isinstance(mark, OperationMark) for mark in info.metadata):
            yield f"{under}{name}"
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from operation(info.annotation, f"{under}{name}.")
