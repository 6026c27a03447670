"""N-gram references: probabilities that sum to one, an example by hand, and a chain whose entropy is known."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico_contract import codec
from pico_contract.layout import RunLayout
from pico_contract.schema import EvaluationManifest
from pico_train.config import validate
from pico_train.data.packed import PackedData
from pico_train.data.prepare import PrepareConfig, prepare
from pico_train.evaluate.ngram import Bigram, ngram_reference, unigram_entropy, write_reference

STATES = 6
MOVES = np.full((STATES, STATES), 0.04) + 0.76 * np.roll(np.eye(STATES), 1, axis=1)
"""A Markov chain of six states that mostly moves on; the uniform distribution is its stationary one."""
ENTROPY_RATE = -float((MOVES[0] * np.log(MOVES[0])).sum())


def chain(length: int, seed: int) -> list[int]:
    draw = np.random.default_rng(seed).random(length)
    steps, state, states = np.cumsum(MOVES, axis=1), 0, []
    for u in draw:
        state = min(int(np.searchsorted(steps[state], u)), STATES - 1)
        states.append(state)
    return states


def tokenised(root: Path, train: list[int], validation: list[int], vocab_size: int, seq_len: int) -> PackedData:
    sources = {}
    for name, ids in {"source": train, "validation_source": validation}.items():
        sources[name] = str(root / f"{name}.jsonl")
        Path(sources[name]).write_text(json.dumps({"input_ids": ids}))
    raw: dict[str, Any] = {**sources, "out": str(root / "packed"), "seq_len": seq_len}
    return PackedData.open(prepare(validate(PrepareConfig, {**raw, "tokenizer": {"vocab_size": vocab_size}}, "test")))


@pytest.mark.parametrize("vocab_size", [7, 30])
def test_probabilities_sum_to_one_after_seen_and_unseen_words(vocab_size: int) -> None:
    """History 6 is never seen, nor are the words from 7 on."""
    draw = np.random.default_rng(0)
    model = Bigram(draw.integers(0, 6, 200), draw.integers(0, 7, 200), vocab_size)
    for history in range(min(vocab_size, 10)):
        p = model.probability(np.full(vocab_size, history), np.arange(vocab_size))
        assert (p > 0).all()
        assert p.sum() == pytest.approx(1, rel=1e-12)


def test_an_example_by_hand() -> None:
    """Pairs ab, ab, ac, ba over V = 4 (a, b, c, d): d = 3/4, each of a, b and c is preceded by one type."""
    a, b, c, d = range(4)
    model = Bigram(np.array([a, a, a, b]), np.array([b, b, c, a]), 4)
    lower = {a: (0.25 + 2.25 / 4) / 3, d: (2.25 / 4) / 3}
    lower[b] = lower[c] = lower[a]
    expected = {
        (a, b): 1.25 / 3 + 0.75 * 2 / 3 * lower[b],
        (a, c): 0.25 / 3 + 0.75 * 2 / 3 * lower[c],
        (a, d): 0.75 * 2 / 3 * lower[d],
        (b, a): 0.25 + 0.75 * lower[a],
        (b, b): 0.75 * lower[b],
        (c, a): lower[a],
        (d, d): lower[d],
    }
    first, second = np.array(list(expected)).T
    assert model.probability(first, second) == pytest.approx(list(expected.values()), rel=1e-12)


def test_the_last_pair_of_the_table_is_found_and_beyond_it_nothing() -> None:
    model = Bigram(np.array([2, 2]), np.array([1, 1]), 4)
    p = model.probability(np.array([2, 2, 3]), np.array([1, 3, 3]))
    assert p[0] > 0.5
    assert 0 < p[1] < 0.1
    assert p[2] == pytest.approx(model.probability(np.array([0]), np.array([3]))[0])


@pytest.mark.parametrize(
    ("labels", "entropy"),
    [([3, 3, 3], 0.0), ([0, 1, 2, 3], math.log(4)), ([5, 5, 5, 9], 0.75 * math.log(4 / 3) + 0.25 * math.log(4))],
)
def test_unigram_entropy(labels: list[int], entropy: float) -> None:
    assert unigram_entropy(np.array(labels)) == pytest.approx(entropy, abs=1e-15)


def test_references_are_fitted_on_train_and_read_on_validation(tmp_path: Path) -> None:
    """Counted anew with a dictionary; the first id of a row is context only."""
    train, validation = chain(203, 1), chain(60, 2)
    data = tokenised(tmp_path, train, validation, vocab_size=9, seq_len=9)
    labels = [w for start in range(0, 60, 10) for w in validation[start + 1 : start + 10]]
    seen = Counter(w for start in range(0, 200, 10) for w in train[start + 1 : start + 10])
    unigram = -sum(math.log((seen[w] + 1) / (180 + 9)) for w in labels) / len(labels)
    shares = [count / len(labels) for count in Counter(labels).values()]
    found = ngram_reference(data)
    assert found["unigram_loss"].value == pytest.approx(unigram, rel=1e-12)
    assert found["unigram_entropy"].value == pytest.approx(-sum(p * math.log(p) for p in shares), rel=1e-12)
    assert {m.n for m in found.values()} == {54}


def test_the_bigram_loss_of_a_markov_chain_approaches_its_entropy_rate(tmp_path: Path) -> None:
    found = {}
    for length in (300, 30_000):
        (tmp_path / str(length)).mkdir()
        data = tokenised(tmp_path / str(length), chain(length, 1), chain(30_000, 2), vocab_size=STATES, seq_len=29)
        found[length] = {name: m.value for name, m in ngram_reference(data).items()}
    short, long = found[300], found[30_000]
    assert long["bigram_loss"] == pytest.approx(ENTROPY_RATE, abs=0.02)
    assert abs(long["bigram_loss"] - ENTROPY_RATE) < abs(short["bigram_loss"] - ENTROPY_RATE)
    assert long["unigram_loss"] == pytest.approx(math.log(STATES), abs=0.01)
    assert long["bigram_loss"] < long["unigram_loss"] - 0.5
    assert long["unigram_entropy"] <= long["unigram_loss"]


def test_the_reference_is_written_beside_the_evaluations(data_dir: Path, tmp_path: Path) -> None:
    layout, data = RunLayout(tmp_path / "run"), PackedData.open(data_dir)
    metrics = write_reference(data, layout, "tiny")
    result = codec.read_manifest(layout.reference, EvaluationManifest)
    assert result.metrics == metrics == ngram_reference(data)
    assert (result.run, result.step, result.task) == ("tiny", 0, "ngram_reference")
    assert result.settings["data"] == data.manifest.fingerprint
    assert metrics["bigram_loss"].value < metrics["unigram_entropy"].value < math.log(280)
