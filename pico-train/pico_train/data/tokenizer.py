"""Tokenizers: a byte-level BPE trained in seconds, or an existing tokenizer.json."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pico_contract.errors import UserError
from pico_contract.layout import TOKENIZER
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL = {"eos": "<|endoftext|>", "pad": "<|pad|>", "mask": "<|mask|>"}
_KNOWN = {
    "eos": ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>"),
    "pad": ("<|pad|>", "<|padding|>", "<pad>", "[PAD]"),
    "mask": ("<|mask|>", "<mask>", "[MASK]"),
}
_PIECE = 1 << 16
"""Characters after which a document may be cut for tokenising."""
_WORD = 1 << 12
"""Characters after which a word is cut for training: the library's time grows with the square of a word's length."""
_LONG = re.compile(rf"\S{{{_WORD}}}|\s{{{_WORD}}}")
_SEAM = re.compile(r"(?<=\w) ")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """What turns text into the ids of a model: `size` ids, a tokenizer.json where there is one, the id of end-of-text.

    `place` is the data directory or checkpoint that they come from, for messages.
    """

    place: Path
    tokenizer: Path | None
    eos: int | None
    size: int


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with eos, pad and mask as its first three ids.

    Raises:
        UserError: `vocab_size` is too small for 256 bytes and the special tokens.
    """
    special = list(SPECIAL.values())
    if vocab_size < 256 + len(special):
        raise UserError(f"tokenizer.vocab_size is {vocab_size}; a byte-level tokenizer needs {256 + len(special)}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((word for text in texts for piece in _cut(text) for word in _short(piece)), trainer)
    return tokenizer


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """`text` in parts whose token ids, one after the other, are those of the whole.

    Tokenising takes over a hundred bytes of memory a character, so that a long document is tokenised part by part.
    Byte-level tokenizers never merge over the place between a letter or digit and a space; of others this is not
    known, and their documents stay whole.
    """
    return _cut(text) if isinstance(tokenizer.decoder, decoders.ByteLevel) else [text]


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Token ids of `text`, (T,) int64, as preparing data makes them: no special tokens are added."""
    encoded = tokenizer.encode_batch_fast(pieces(tokenizer, text), add_special_tokens=False)
    return np.concatenate([np.array(part.ids, dtype=np.int64) for part in encoded])


def _cut(text: str) -> list[str]:
    parts, start = [], 0
    while found := _SEAM.search(text, start + _PIECE):
        parts.append(text[start : found.start()])
        start = found.start()
    return [*parts, text[start:]]


def _short(text: str) -> list[str]:
    """`text` in parts that end where a word (or white space) has become long: such are no words of a language."""
    ends = [0, *(found.end() for found in _LONG.finditer(text)), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(ends)]


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, or in a directory that holds one.

    Raises:
        UserError: there is none, or it does not parse.
    """
    file = path / TOKENIZER if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no tokenizer at {file}")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{file} is not a tokenizer.json: {error}") from None
    # A stored limit or padding would shorten or fill documents without a word.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id; the ids of added tokens may leave gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def special_tokens(tokenizer: Tokenizer, vocab_size: int) -> dict[str, int]:
    """Ids of eos, pad and mask, those that exist; a free id below `vocab_size` serves as a missing mask.

    Raises:
        UserError: the tokenizer has no end-of-text token under a known name.
    """
    found = {
        role: next(i for i in map(tokenizer.token_to_id, words) if i is not None)
        for role, words in _KNOWN.items()
        if any(tokenizer.token_to_id(word) is not None for word in words)
    }
    if "eos" not in found:
        raise UserError(f"the tokenizer has no end-of-text token; one of {', '.join(_KNOWN['eos'])} is needed")
    size = vocabulary_size(tokenizer)
    if "mask" not in found and size < vocab_size:
        found["mask"] = size
    return found


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of UTF-8 that each id stands for, (vocab,) int64; 0 for special tokens.

    Byte-level BPE writes every byte as one printable character. SentencePiece's vocabularies write a space as U+2581
    and a byte that is no character of theirs as <0xNN>. Added tokens are written as they are.
    """
    added = tokenizer.get_added_tokens_decoder()
    byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
    lengths = np.zeros(vocabulary_size(tokenizer), dtype=np.int64)
    for word, token in tokenizer.get_vocab().items():
        if token in added:
            lengths[token] = 0 if added[token].special else len(word.encode())
        elif byte_level or _BYTE.fullmatch(word):
            lengths[token] = len(word) if byte_level else 1
        else:
            lengths[token] = len(word.replace("\u2581", " ").encode())
    return lengths
