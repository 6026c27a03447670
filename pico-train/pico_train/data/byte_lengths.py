"""Bytes of text that token ids stand for, where that can be told from the ids."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_SPACE_MARK = "\u2581"
"""SentencePiece's character for a space."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_KEEPING = {"ByteLevel", "Split", "Digits", "Punctuation"}
"""Pre-tokenizers that part a text; a `Split` may also remove."""


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray | None:
    """Bytes of text that each id stands for, (vocab,) int64, 0 for special tokens; None where that
    depends on the text.

    It is known of byte-level BPE, and of SentencePiece's BPE with bytes for unknown characters, as
    long as nothing is put before a text and nothing in it is replaced but the space. WordPiece
    drops spaces, and unknown words; most normalizers change bytes.
    """
    known = is_plain_byte_level(tokenizer) or _is_plain_sentence_piece(tokenizer)
    return written_byte_lengths(tokenizer) if known else None


def written_byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of UTF-8 of each id as the vocabulary writes it, (vocab,) int64; 0 for special tokens.

    Byte-level BPE writes every byte as one printable character. SentencePiece's vocabularies write
    a space as U+2581 and a byte that is no character of theirs as <0xNN>. Added tokens are written
    as they are. The bytes of a text are their sum only where nothing was dropped, added or
    replaced.
    """
    added = tokenizer.get_added_tokens_decoder()
    byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
    vocabulary = tokenizer.get_vocab()
    lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    for word, token in vocabulary.items():
        if token in added:
            lengths[token] = 0 if added[token].special else len(word.encode())
        elif byte_level or _BYTE.fullmatch(word):
            lengths[token] = len(word) if byte_level else 1
        else:
            lengths[token] = len(word.replace(_SPACE_MARK, " ").encode())
    return lengths


def is_plain_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether ids are the bytes of a text and nothing else."""
    model, steps = tokenizer.model, _steps(tokenizer.pre_tokenizer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    return (
        isinstance(tokenizer.decoder, decoders.ByteLevel)
        and isinstance(model, models.BPE)
        and not (model.continuing_subword_prefix or model.end_of_word_suffix)
        and tokenizer.normalizer is None
        and [step["add_prefix_space"] for step in steps if step["type"] == "ByteLevel"] == [False]
        and {step["type"] for step in steps} <= _KEEPING
        and all(step.get("behavior", "Isolated") != "Removed" for step in steps)
        and all(byte in vocabulary for byte in pre_tokenizers.ByteLevel.alphabet())
        and _keeps_spaces(tokenizer)
    )


def _is_plain_sentence_piece(tokenizer: Tokenizer) -> bool:
    """Whether ids are the characters of a text, or else their bytes, with U+2581 for a space."""
    model, vocabulary = tokenizer.model, tokenizer.get_vocab(with_added_tokens=False)
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE_MARK}
    marked = {"type": "Metaspace", "replacement": _SPACE_MARK, "prepend_scheme": "never"}
    steps = [{k: v for k, v in s.items() if k != "split"} for s in _steps(tokenizer.pre_tokenizer)]
    return (
        isinstance(model, models.BPE)
        and model.byte_fallback
        and [*_steps(tokenizer.normalizer), *steps] in ([replaced], [marked])
        and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
        and _SPACE_MARK in vocabulary
        and _keeps_spaces(tokenizer)
    )


def _keeps_spaces(tokenizer: Tokenizer) -> bool:
    """Whether added tokens leave the spaces around them alone."""
    added = tokenizer.get_added_tokens_decoder().values()
    return not any(word.lstrip or word.rstrip for word in added if not word.special)


def _steps(component: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, as tokenizer.json writes them."""
    if component is None:
        return []
    raw = json.loads(component.__getstate__())
    steps = raw.get("normalizers", raw.get("pretokenizers", [raw]))
    return [step for step in steps if isinstance(step, dict)]
