"""The names of special tokens in a text: text, or a refusal; never the token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pico_contract.errors import UserError
from pico_train.data.tokenizer import SPECIAL, Vocabulary, encode, load_tokenizer, train_tokenizer, vocabulary_size
from pico_train.evaluate.likelihood import TextEncoder
from tokenizers import AddedToken

from ...support.tokenizer_kinds import EOS, KINDS, SAMPLE, byte_level
from .conftest import Make

CANNOT = {"unigram, bytes", "unigram, unknown", "whole words"}
"""Kinds whose vocabulary has the name as a word."""
TEXT = f"the king {EOS} the queen"


def control(ids: np.ndarray, eos: int) -> int:
    return int((ids == eos).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_in_a_text_is_text_or_refused(kind: str, tmp_path: Path) -> None:
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    eos = tokenizer.token_to_id(EOS)
    assert control(encode(tokenizer, "the king"), eos) == 0
    if kind in CANNOT:
        with pytest.raises(UserError, match=r'^the prompt holds "</s>", which this tokenizer cannot read as text'):
            encode(tokenizer, TEXT, "the prompt")
    else:
        assert control(encode(tokenizer, TEXT), eos) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_rows_end_documents_where_they_end(kind: str, make: Make, refused: Callable[..., str], tmp_path: Path) -> None:
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": TEXT}) + "\n" for _ in range(30)))
    path = {"path": str(tmp_path / "tokenizer.json"), "vocab_size": vocabulary_size(tokenizer)}
    if kind in CANNOT:
        sentence = refused(tmp_path / "text.jsonl", tokenizer=path, seq_len=2)
        assert sentence.startswith(f'"{tmp_path / "text.jsonl"}", document 1, holds "{EOS}", which this tokenizer')
        return
    data = make(tmp_path / "text.jsonl", tokenizer=path, seq_len=1)
    rows = data.split("train")
    ends = control(rows.take(np.arange(rows.n_rows)), tokenizer.token_to_id(EOS))
    assert 29 <= ends <= 30  # the last may be among the ids that filled no row


def test_a_trained_tokenizer_reads_its_own_names_as_text(make: Make, tmp_path: Path) -> None:
    text = " and ".join(SPECIAL.values())
    (tmp_path / "text.txt").write_text("%%".join([text] * 40))
    data = make({"path": str(tmp_path / "text.txt"), "separator": "%%"}, seq_len=1)
    rows = data.split("train")
    ids = rows.take(np.arange(rows.n_rows)).ravel()
    assert [control(ids, token) for token in (1, 2)] == [0, 0]
    assert control(ids, 0) <= 40
    assert train_tokenizer(SAMPLE, 300).encode("<|endoftext|>").ids != [0]


def test_a_name_that_is_marked_as_an_ordinary_word_is_refused_too(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<|endoftext|>", special=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r'holds "<\|endoftext\|>"'):
        encode(load_tokenizer(tmp_path), "a <|endoftext|> b")


@pytest.mark.parametrize("kind", ["wordpiece", "unigram, unknown", "whole words"])
def test_unknown_words_are_no_special_token(kind: str, tmp_path: Path) -> None:
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    assert len(encode(load_tokenizer(tmp_path), "the 王")) > 1


def test_an_evaluated_text_and_a_sentence_begin_with_the_start_token_alone(tmp_path: Path) -> None:
    """The template of the tokenizer adds one of its own, which rows never have."""
    KINDS["llama 3"]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    vocabulary = Vocabulary(tmp_path, tmp_path / "tokenizer.json", 0, vocabulary_size(tokenizer))
    ids = TextEncoder(vocabulary, "eos")(TEXT)
    assert ids[0] == 0
    assert control(ids[1:], 0) == 0
