"""Kinds and splits: one list, which the choices of both configurations repeat as literals."""

from __future__ import annotations

from typing import get_args

from pico_analyze.config import AnalysisConfig
from pico_contract.config_types import type_at
from pico_contract.kinds import ACTIVATIONS, GRADIENTS, KINDS, MICROBATCH_GRADIENTS, SPLITS, WEIGHTS, observation_name
from pico_train.observe.snapshot import SnapshotConfig


def test_kinds_and_splits_are_those_of_the_format() -> None:
    assert (WEIGHTS, GRADIENTS, ACTIVATIONS, MICROBATCH_GRADIENTS) == KINDS
    assert KINDS == ("weights", "gradients", "activations", "microbatch_gradients")
    assert SPLITS == ("train", "val")


def test_the_choices_of_training_are_observations_of_the_format() -> None:
    choices = get_args(type_at(SnapshotConfig.model_fields["kinds"].annotation, 0))
    possible = {observation_name(split, kind) for split in SPLITS for kind in KINDS}
    assert len(choices) == 4
    assert set(choices) < possible


def test_the_choices_of_analysis_are_the_kinds_and_updates() -> None:
    lists = [member for member in get_args(AnalysisConfig.model_fields["kinds"].annotation) if get_args(member)]
    assert [get_args(get_args(found)[0]) for found in lists] == [(*KINDS, "updates")]
    splits = [member for member in get_args(AnalysisConfig.model_fields["splits"].annotation) if get_args(member)]
    assert [get_args(get_args(found)[0]) for found in splits] == [SPLITS]
