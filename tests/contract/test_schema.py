"""Manifests: strict JSON out, checked JSON in, and the version policy."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_contract.errors import DamagedError
from pico_contract.schema import (
    FORMAT_VERSION,
    CheckpointManifest,
    DataManifest,
    EvaluationManifest,
    FileEntry,
    Manifest,
    Measurement,
    RowMap,
    RunManifest,
    SnapshotManifest,
    SplitInfo,
    StateManifest,
    TensorSet,
)

PATH = Path("runs/a/manifest.json")
FILES = {"model.safetensors": FileEntry(12, "ab" * 32)}
CREATED = "2026-01-02T03:04:05+00:00"

RUN = RunManifest(
    created=CREATED,
    name="a",
    parent="runs/b@100",
    status="running",
    step=3,
    total_steps=10,
    heartbeat=CREATED,
    model={"hidden_size": 8, "rope_theta": 10000.0, "tie_word_embeddings": False},
    parameters={"total": 100},
    method="plain",
    seeds={"init": 0},
    data={"fingerprint": "f"},
    sessions=[{"host": "h", "packages": {"torch": "2"}}],
)
SNAPSHOT = SnapshotManifest(
    created=CREATED,
    files=FILES,
    run="a",
    step=3,
    weights="snapshot",
    modules=["lm_head"],
    observed=[TensorSet(file="f", split="val", kind="gradients", dtype="float32", tensors={"lm_head.weight": [3, 4]})],
    row_map=RowMap(rule="last", positions=[7], probe_rows=2),
    absent={"train.gradients": "final_step"},
)
EVALUATION = EvaluationManifest(
    created=CREATED,
    run="a",
    step=3,
    task="perplexity",
    settings={"rows": 4},
    metrics={"loss": Measurement(value=0.1 + 0.2, unit="nats/token", n=32)},
)
DATA = DataManifest(
    created=CREATED,
    files=FILES,
    fingerprint="f",
    source="s",
    licence="CC0-1.0",
    seq_len=8,
    vocab_size=260,
    dtype="uint16",
    special_tokens={"eos": 0},
    splits={"train": SplitInfo(rows=2, tokens=20, documents=1, dropped_tokens=2)},
)
CHECKPOINT = CheckpointManifest(created=CREATED, files=FILES, run="a", step=3, tokens=300)
STATE = StateManifest(created=CREATED, files={}, step=3)
ALL: list[Manifest] = [RUN, SNAPSHOT, EVALUATION, DATA, CHECKPOINT, STATE]

by_format = pytest.mark.parametrize("manifest", ALL, ids=lambda manifest: manifest.format)


def refusal(kind: type[Manifest], content: Any) -> str:
    with pytest.raises(DamagedError) as caught:
        kind.from_json(content if isinstance(content, str) else json.dumps(content), PATH)
    return str(caught.value)


def changed(manifest: Manifest, **changes: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(manifest), **changes}


@by_format
def test_what_is_written_reads_back_equal(manifest: Manifest) -> None:
    assert type(manifest).from_json(manifest.to_json(), PATH) == manifest


@by_format
def test_what_is_written_says_format_and_version_first_and_ends_with_a_newline(manifest: Manifest) -> None:
    text = manifest.to_json()
    assert list(json.loads(text))[:3] == ["format", "format_version", "created"]
    assert json.loads(text)["format_version"] == FORMAT_VERSION
    assert text.endswith("}\n")


def test_formats_differ() -> None:
    assert len({manifest.format for manifest in ALL}) == len(ALL)


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_to_the_last_bit(value: float) -> None:
    manifest = dataclasses.replace(EVALUATION, metrics={"m": Measurement(value=value, unit="1", n=1)})
    found = EvaluationManifest.from_json(manifest.to_json(), PATH).metrics["m"].value
    assert (found, math.copysign(1, found)) == (value, math.copysign(1, value))


def with_a_later_key(value: Any) -> Any:
    """`value` as a later minor version might write it: every object of the schema has one more key."""
    if dataclasses.is_dataclass(value):
        known = {field.name: with_a_later_key(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {**known, "later": [1]}
    if isinstance(value, dict):
        return {key: with_a_later_key(inner) for key, inner in value.items()}
    return [with_a_later_key(inner) for inner in value] if isinstance(value, list) else value


@by_format
def test_unknown_keys_are_ignored_at_every_depth(manifest: Manifest) -> None:
    """C3.7: a later minor version may have written them."""
    assert type(manifest).from_json(json.dumps(with_a_later_key(manifest)), PATH) == manifest


@by_format
def test_every_key_without_a_default_is_required(manifest: Manifest) -> None:
    """C3.6: a missing key is refused by name."""
    raw, nothing = dataclasses.asdict(manifest), dataclasses.MISSING
    required = [f.name for f in dataclasses.fields(manifest) if f.default is nothing and f.default_factory is nothing]
    assert required
    for key in required:
        missing = {name: value for name, value in raw.items() if name != key}
        assert refusal(type(manifest), missing) == f'{PATH} lacks the key "{key}"'


def test_a_key_that_is_missing_within_is_named_with_its_place() -> None:
    raw = changed(SNAPSHOT, observed=[{"file": "f", "split": "val", "kind": "gradients", "dtype": "float32"}])
    assert refusal(SnapshotManifest, raw) == f'{PATH}: observed[0] lacks the key "tensors"'


@pytest.mark.parametrize(
    ("manifest", "changes", "sentence"),
    [
        (CHECKPOINT, {"step": "3"}, "{path}: step should be int but is '3'"),
        (CHECKPOINT, {"step": True}, "{path}: step should be int but is True"),
        (CHECKPOINT, {"step": 3.0}, "{path}: step should be int but is 3.0"),
        (CHECKPOINT, {"run": None}, "{path}: run should be str but is None"),
        (CHECKPOINT, {"files": []}, "{path}: files should be dict"),
        (CHECKPOINT, {"files": {"f": 3}}, "{path}: files: f should be an object but is 3"),
        (CHECKPOINT, {"files": {"f": {"size": "1", "sha256": ""}}}, "{path}: files: f: size should be int but is '1'"),
        (RUN, {"parent": 3}, "{path}: parent should be str but is 3"),
        (RUN, {"sessions": {}}, "{path}: sessions should be list"),
        (RUN, {"seeds": {"init": 0.5}}, "{path}: seeds: init should be int but is 0.5"),
        (SNAPSHOT, {"row_map": []}, "{path}: row_map should be an object but is []"),
        (SNAPSHOT, {"modules": ["a", 3]}, "{path}: modules[1] should be str but is 3"),
        (
            EVALUATION,
            {"metrics": {"m": {"value": "1", "unit": "1", "n": 1}}},
            "{path}: metrics: m: value should be float",
        ),
    ],
)
def test_a_wrong_type_is_named_with_its_place(manifest: Manifest, changes: dict[str, Any], sentence: str) -> None:
    """C3.6: a wrong type is refused by key."""
    assert refusal(type(manifest), changed(manifest, **changes)).startswith(sentence.format(path=PATH))


def test_null_and_whole_numbers_are_taken_where_they_mean_the_same() -> None:
    assert RunManifest.from_json(json.dumps(changed(RUN, parent=None)), PATH).parent is None
    assert SnapshotManifest.from_json(json.dumps(changed(SNAPSHOT, row_map=None)), PATH).row_map is None
    raw = changed(EVALUATION, metrics={"m": {"value": 1, "unit": "1", "n": 1}})
    assert isinstance(EvaluationManifest.from_json(json.dumps(raw), PATH).metrics["m"].value, float)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 99, 0, -1, None, "1", 1.0, True])
def test_another_major_version_is_refused(version: Any) -> None:
    """C3.6: a later major version is refused."""
    sentence = refusal(CheckpointManifest, changed(CHECKPOINT, format_version=version))
    assert sentence.startswith(f"{PATH} has format_version {version!r}; this version reads 1 to {FORMAT_VERSION}")


def test_a_newer_version_is_refused_even_where_its_keys_would_not_fit() -> None:
    assert "format_version 2" in refusal(RunManifest, {"format": "pico-run", "format_version": 2})


@pytest.mark.parametrize(
    ("content", "found"),
    [({"format": "pico-data"}, "'pico-data'"), ({}, "None"), ([], "'list'"), ("3", "'int'"), ("null", "'NoneType'")],
)
def test_another_format_is_refused(content: Any, found: str) -> None:
    """C3.6: another format is refused."""
    assert refusal(RunManifest, content) == f'{PATH} should say format "pico-run" but says {found}'


@pytest.mark.parametrize("text", ["", "{", '{"format": "pico-run",}', "not JSON"])
def test_what_is_not_json_is_refused(text: str) -> None:
    assert refusal(RunManifest, text).startswith(f"{PATH} is not valid JSON (")


NUMBERS = [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity"), (math.inf, "1e999")]


@pytest.mark.parametrize(("value", "text"), NUMBERS)
def test_a_number_that_is_not_finite_is_not_read(value: float, text: str) -> None:
    raw = EVALUATION.to_json().replace(repr(0.1 + 0.2), text)
    assert refusal(EvaluationManifest, raw) == f"{PATH}: metrics: loss: value is {value}, which is not a number of JSON"
    raw = RUN.to_json().replace("10000.0", text)
    assert refusal(RunManifest, raw) == f"{PATH}: model: rope_theta is {value}, which is not a number of JSON"


@pytest.mark.parametrize(("value", "text"), NUMBERS)
def test_a_number_that_is_not_finite_is_not_written(value: float, text: str) -> None:
    manifest = dataclasses.replace(EVALUATION, settings={"list": [1.0, value]})
    with pytest.raises(
        ValueError, match=f"pico-evaluation: settings: list: 1 is {value}, which is not a number of JSON"
    ):
        manifest.to_json()


def test_a_writer_cannot_write_keys_that_are_not_declared() -> None:
    """C3.8: the declared keys are all that a writer has."""
    with pytest.raises(TypeError, match="later"):
        CheckpointManifest(run="a", step=3, tokens=300, later=1)  # type: ignore[call-arg]


def test_every_key_and_format_is_in_the_specification() -> None:
    specification = (Path(__file__).parents[2] / "shared" / "CONTRACT.md").read_text(encoding="utf-8")
    parts = [*map(type, ALL), TensorSet, RowMap, Measurement, SplitInfo]
    keys = {field.name for part in parts for field in dataclasses.fields(part)}
    assert len(keys) > 40
    words = {*keys, *(manifest.format for manifest in ALL)}
    assert not [word for word in sorted(words) if f"`{word}`" not in specification]
