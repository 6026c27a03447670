"""Minimal pairs: is the acceptable sentence of a pair more probable than the other?

The pairs have the format of BLiMP (Warstadt et al. 2020).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pico_contract.errors import UserError, did_you_mean
from pico_contract.schema import Measurement
from pydantic import Field

from pico_train.config import Section
from pico_train.data.files import Record, is_json_lines, json_records
from pico_train.data.sources import HUB, SourceConfig, hub_records, hub_subsets
from pico_train.evaluate.likelihood import StartToken, TextEncoder, sequence_nll
from pico_train.evaluate.progress import Advance, ignore
from pico_train.model.decoder import Decoder


class BlimpConfig(Section):
    """Accuracy on minimal pairs of sentences."""

    path: str | None = None
    """A directory of BLiMP's .jsonl files, or "hub:nyu-mll/blimp", downloaded once; null is off.
    The fields are sentence_good, sentence_bad, UID and linguistics_term."""
    start_token: StartToken = "eos"
    """Token before each sentence: end-of-text, or "none", which leaves out the first token."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens a forward pass; changes no result beyond rounding."""


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences, the first of them acceptable.

    `paradigm` is BLiMP's UID, `phenomenon` its linguistics_term.
    """

    good: str
    bad: str
    paradigm: str
    phenomenon: str


_FIELDS = ("sentence_good", "sentence_bad", "UID", "linguistics_term")
"""BLiMP's names for the fields of `MinimalPair`, in the same order."""


def read_pairs(path: str) -> list[MinimalPair]:
    """Read all pairs from the .jsonl files of a directory, or from all subsets of a hub data set.

    Raises:
        UserError: no such directory or data set, no pairs in it, or a record without one of BLiMP's
            fields.
    """
    pairs = [_pair(record, where) for where, record in _records(path)]
    if not pairs:
        raise UserError(f"evaluate.blimp.path: {path} holds no minimal pair")
    return pairs


def _records(path: str) -> Iterator[Record]:
    if path.startswith(HUB):
        for subset in hub_subsets(path.removeprefix(HUB)):
            yield from hub_records(SourceConfig(path=path, subset=subset), keep=True)
        return
    folder = Path(path)
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = did_you_mean(folder.name, siblings)
        raise UserError(f"evaluate.blimp.path: there is no directory {path}{near}")
    for file in sorted(filter(is_json_lines, folder.glob("[!.]*"))):
        yield from json_records(file)


def _pair(record: dict[str, Any], where: str) -> MinimalPair:
    for name in _FIELDS:
        if name not in record:
            raise UserError(f'{where} has no field "{name}"{did_you_mean(name, record)}')
        if not isinstance(record[name], str) or not record[name].strip():
            raise UserError(f'{where}: the field "{name}" holds no text')
    return MinimalPair(*(record[name] for name in _FIELDS))


def minimal_pairs(
    model: Decoder,
    pairs: list[MinimalPair],
    encoder: TextEncoder,
    batch_tokens: int,
    advance: Advance = ignore,
) -> dict[str, Measurement]:
    """Measure the share of pairs with P(good) > P(bad) over whole sentences.

    ln P(sentence) is the sum over its tokens of ln p(token | start token and tokens so far), not
    divided by length. A tie counts as wrong. accuracy/paradigm/P is over the pairs of P;
    accuracy/phenomenon/F and accuracy are means over paradigms; n counts pairs.

    Raises:
        UserError: a sentence has more tokens than the model has positions.
    """
    nll = sentence_nll(model, pairs, encoder, batch_tokens, advance)
    answers: defaultdict[_Paradigm, list[bool]] = defaultdict(list)
    for pair in pairs:
        is_right = nll[pair.good] < nll[pair.bad]
        answers[pair.phenomenon, pair.paradigm].append(is_right)
    return _accuracies(answers)


_Paradigm = tuple[str, str]
"""(phenomenon, paradigm): paradigms of different phenomena may share a name."""


def _accuracies(answers: dict[_Paradigm, list[bool]]) -> dict[str, Measurement]:
    metrics = {"accuracy": _mean(list(answers.values()))}
    for phenomenon, paradigms in sorted(_by_phenomenon(answers).items()):
        metrics[f"accuracy/phenomenon/{phenomenon}"] = _mean(paradigms)
    for (_, paradigm), right in sorted(answers.items()):
        metrics[f"accuracy/paradigm/{paradigm}"] = _mean([right])
    return metrics


def _by_phenomenon(answers: dict[_Paradigm, list[bool]]) -> dict[str, list[list[bool]]]:
    phenomena: defaultdict[str, list[list[bool]]] = defaultdict(list)
    for (phenomenon, _), right in answers.items():
        phenomena[phenomenon].append(right)
    return phenomena


def distinct_sentences(pairs: list[MinimalPair]) -> list[str]:
    """List every sentence of `pairs` once, in the order of its first pair."""
    sentences = [sentence for pair in pairs for sentence in (pair.good, pair.bad)]
    return list(dict.fromkeys(sentences))


def sentence_nll(
    model: Decoder,
    pairs: list[MinimalPair],
    encoder: TextEncoder,
    batch_tokens: int,
    advance: Advance = ignore,
) -> dict[str, float]:
    """Return sentence -> -ln P(sentence), nats.

    A sentence of several pairs is measured once, so that equal sentences tie exactly.
    """
    sentences = distinct_sentences(pairs)
    ids = [encoder(sentence, f'the sentence "{sentence}"') for sentence in sentences]
    # Checked for all sentences before the first forward pass.
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    positions, needed = model.config.max_position_embeddings, len(ids[longest]) - 1
    if needed > positions:
        raise UserError(
            f'the model has {positions} positions, but "{sentences[longest]}" needs {needed}'
        )
    nll = sequence_nll(model, ids, batch_tokens, advance)
    return dict(zip(sentences, nll.tolist(), strict=True))


def pairs_settings(pairs: list[MinimalPair]) -> dict[str, Any]:
    """Return everything about the pairs and their comparison that decides a result."""
    # JSON quotes each field, so pairs that differ only in where a text ends hash differently.
    lines = [json.dumps(astuple(pair)) + "\n" for pair in pairs]
    return {
        "pairs": hashlib.sha256("".join(lines).encode()).hexdigest(),
        "score": "ln P of the whole sentence, not divided by its length",
        "ties": "wrong",
        "mean": "over paradigms",
    }


def _mean(paradigms: list[list[bool]]) -> Measurement:
    """Return the mean accuracy over paradigms."""
    # Each paradigm counts once, however many pairs it has.
    accuracies = [np.mean(answers) for answers in paradigms]
    n_pairs = sum(len(answers) for answers in paradigms)
    return Measurement(value=float(np.mean(accuracies)), unit="1", n=n_pairs)
