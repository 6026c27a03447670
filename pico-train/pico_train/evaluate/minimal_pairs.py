"""Minimal pairs: does a model find the acceptable sentence of a pair more probable (BLiMP, Warstadt
et al. 2020)?"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pico_contract.errors import UserError, did_you_mean
from pico_contract.schema import Measured
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
    """A directory of .jsonl files with BLiMP's fields (sentence_good, sentence_bad, UID,
    linguistics_term), or "hub:nyu-mll/blimp", which is downloaded once; null is off."""
    start_token: StartToken = "eos"
    """What precedes each sentence: the end-of-text token, or nothing ("none"), which leaves out the
    first token."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens a forward pass; changes no result beyond rounding."""


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences of which the first is acceptable; `paradigm` is BLiMP's UID, `phenomenon` its
    linguistics_term."""

    good: str
    bad: str
    paradigm: str
    phenomenon: str


_FIELDS = ("sentence_good", "sentence_bad", "UID", "linguistics_term")


def read_pairs(path: str) -> list[MinimalPair]:
    """All pairs of the .jsonl files of a directory, or of all subsets of a hub data set.

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
        subsets = hub_subsets(path.removeprefix(HUB))
        return itertools.chain.from_iterable(
            hub_records(SourceConfig(path=path, subset=subset), keep=True) for subset in subsets
        )
    folder = Path(path)
    if not folder.is_dir():
        near = (
            did_you_mean(folder.name, [p.name for p in folder.parent.iterdir()])
            if folder.parent.is_dir()
            else ""
        )
        raise UserError(f"evaluate.blimp.path: there is no directory {path}{near}")
    return itertools.chain.from_iterable(
        map(json_records, sorted(filter(is_json_lines, folder.glob("[!.]*"))))
    )


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
) -> dict[str, Measured]:
    """Share of pairs with P(good) > P(bad) over whole sentences; a tie counts as wrong.

    ln P(sentence) is the sum over its tokens of ln p(token | start token and tokens so far), not
    divided by length. accuracy/paradigm/P is over the pairs of P, accuracy/phenomenon/F and
    accuracy are means over paradigms; n counts pairs.

    Raises:
        UserError: a sentence has more tokens than the model has positions.
    """
    scores = sentence_nll(model, pairs, encoder, batch_tokens, advance)
    right: defaultdict[tuple[str, str], list[bool]] = defaultdict(
        list
    )  # (phenomenon, paradigm) -> one a pair
    for pair in pairs:
        right[pair.phenomenon, pair.paradigm].append(scores[pair.good] < scores[pair.bad])
    phenomena = sorted({phenomenon for phenomenon, _ in right})
    metrics = {"accuracy": _mean(list(right.values()))}
    for name in phenomena:
        metrics[f"accuracy/phenomenon/{name}"] = _mean(
            [of for (phenomenon, _), of in right.items() if phenomenon == name]
        )
    return metrics | {
        f"accuracy/paradigm/{name}": _mean([of]) for (_, name), of in sorted(right.items())
    }


def distinct_sentences(pairs: list[MinimalPair]) -> list[str]:
    """List every sentence of `pairs` once, in the order of its first pair."""
    return list(
        dict.fromkeys(itertools.chain.from_iterable((pair.good, pair.bad) for pair in pairs))
    )


def sentence_nll(
    model: Decoder,
    pairs: list[MinimalPair],
    encoder: TextEncoder,
    batch_tokens: int,
    advance: Advance = ignore,
) -> dict[str, float]:
    """Sentence -> -ln P(sentence), nats. A sentence of several pairs is measured once, and equal
    ones tie exactly."""
    sentences = distinct_sentences(pairs)
    ids = [encoder(sentence, f'the sentence "{sentence}"') for sentence in sentences]
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    positions, needed = model.config.max_position_embeddings, len(ids[longest]) - 1
    if needed > positions:
        raise UserError(
            f'the model has {positions} positions, but "{sentences[longest]}" needs {needed}'
        )
    return dict(
        zip(sentences, sequence_nll(model, ids, batch_tokens, advance).tolist(), strict=True)
    )


def pairs_settings(pairs: list[MinimalPair]) -> dict[str, Any]:
    """What of the pairs and of their comparison decides a result."""
    digest = hashlib.sha256("".join(json.dumps(astuple(pair)) + "\n" for pair in pairs).encode())
    return {
        "pairs": digest.hexdigest(),
        "score": "ln P of the whole sentence, not divided by its length",
        "ties": "wrong",
        "mean": "over paradigms",
    }


def _mean(paradigms: list[list[bool]]) -> Measured:
    accuracies = [np.mean(of) for of in paradigms]
    return Measured(value=float(np.mean(accuracies)), unit="1", n=sum(map(len, paradigms)))
