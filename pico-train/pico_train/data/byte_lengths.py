"""Bytes of text that token ids stand for, if the ids alone determine them."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_SPACE_MARK = "\u2581"
"""SentencePiece's character for a space."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""SentencePiece's name of a single byte."""
_KEEPING = {"ByteLevel", "Split", "Digits", "Punctuation"}
"""Pre-tokenizers that divide a text and keep it whole, unless a `Split` is set to remove."""


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray | None:
    """Return the bytes of text that each id stands for, (vocab,) int64; None if texts decide.

    They are 0 for special tokens. They are known for byte-level BPE, and for SentencePiece's BPE
    with bytes for unknown characters, as long as nothing is put before a text and only its
    spaces are replaced. WordPiece drops spaces and unknown words; most normalizers change bytes.
    """
    known = is_plain_byte_level(tokenizer) or _is_plain_sentence_piece(tokenizer)
    return written_byte_lengths(tokenizer) if known else None


def written_byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Return the bytes of UTF-8 of each id as the vocabulary writes it, (vocab,) int64.

    They are 0 for special tokens. Byte-level BPE writes every byte as one printable character.
    SentencePiece's vocabularies write a space as U+2581 and a byte without its own entry as
    <0xNN>. Added tokens are written literally. The sum over a text is the text's bytes only if
    the tokenizer dropped, added and replaced nothing.
    """
    added = tokenizer.get_added_tokens_decoder()
    byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
    vocabulary = tokenizer.get_vocab()
    lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    for word, token in vocabulary.items():
        if token in added:
            lengths[token] = 0 if added[token].special else len(word.encode())
        elif byte_level or _BYTE.fullmatch(word):
            # One printable character is one byte.
            lengths[token] = len(word) if byte_level else 1
        else:
            lengths[token] = len(word.replace(_SPACE_MARK, " ").encode())
    return lengths


def is_plain_byte_level(tokenizer: Tokenizer) -> bool:
    """Return whether ids stand for the bytes of a text and nothing else."""
    model = tokenizer.model
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    return (
        isinstance(tokenizer.decoder, decoders.ByteLevel)
        and isinstance(model, models.BPE)
        and not (model.continuing_subword_prefix or model.end_of_word_suffix)
        and tokenizer.normalizer is None
        and _divides_only(_steps(tokenizer.pre_tokenizer))
        and all(byte in vocabulary for byte in pre_tokenizers.ByteLevel.alphabet())
        and _keeps_spaces(tokenizer)
    )


def _divides_only(steps: list[dict[str, Any]]) -> bool:
    """Return whether pre-tokenizing with one ByteLevel step divides a text and changes nothing."""
    byte_levels = [step for step in steps if step["type"] == "ByteLevel"]
    return (
        [step["add_prefix_space"] for step in byte_levels] == [False]
        and {step["type"] for step in steps} <= _KEEPING
        and all(step.get("behavior", "Isolated") != "Removed" for step in steps)
    )


def _is_plain_sentence_piece(tokenizer: Tokenizer) -> bool:
    """Return whether ids are characters of a text, or else bytes, with U+2581 for a space."""
    model, vocabulary = tokenizer.model, tokenizer.get_vocab(with_added_tokens=False)
    return (
        isinstance(model, models.BPE)
        and model.byte_fallback
        and _replaces_only_spaces(tokenizer)
        and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
        and _SPACE_MARK in vocabulary
        and _keeps_spaces(tokenizer)
    )


def _replaces_only_spaces(tokenizer: Tokenizer) -> bool:
    by_normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE_MARK}
    by_metaspace = {"type": "Metaspace", "replacement": _SPACE_MARK, "prepend_scheme": "never"}
    steps = _steps(tokenizer.normalizer)
    for step in _steps(tokenizer.pre_tokenizer):
        # Metaspace may also divide the text ("split"), which changes no byte.
        steps.append({key: value for key, value in step.items() if key != "split"})
    return steps in ([by_normalizer], [by_metaspace])


def _keeps_spaces(tokenizer: Tokenizer) -> bool:
    """Return whether added tokens leave the spaces around them alone."""
    added = tokenizer.get_added_tokens_decoder().values()
    return not any(word.lstrip or word.rstrip for word in added if not word.special)


def _steps(component: Any) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, as tokenizer.json writes them."""
    if component is None:
        return []
    raw = json.loads(component.__getstate__())
    # A Sequence nests its steps; any other component is one step.
    steps = raw.get("normalizers", raw.get("pretokenizers", [raw]))
    return [step for step in steps if isinstance(step, dict)]
