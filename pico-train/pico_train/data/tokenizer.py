"""Tokenizers: a byte-level BPE trained in seconds, or an existing tokenizer.json."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pico_contract.errors import UserError
from pico_contract.layout import TOKENIZER
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pico_train.data.byte_lengths import is_plain_byte_level
from pico_train.data.byte_lengths import token_byte_lengths as token_byte_lengths

SPECIAL = {"eos": "<|endoftext|>", "pad": "<|pad|>", "mask": "<|mask|>"}
_KNOWN = {
    "eos": ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>"),
    "pad": ("<|pad|>", "<|padding|>", "<pad>", "[PAD]"),
    "mask": ("<|mask|>", "<mask>", "[MASK]"),
}
_PIECE = 1 << 16
"""Characters after which a document may be cut for tokenising."""
_WORD = 1 << 12
"""Characters after which a word is cut for training: the library's time grows with the square of a
word's length."""
_LONG = re.compile(rf"\S{{{_WORD}}}|\s{{{_WORD}}}")
_SPACE = re.compile(r"(?<=\w) ")
_SEAM = re.compile(r"(?<=\w)(?=\W)")
"""The end of a word, whatever follows: a space, a line end, punctuation of any script."""
_TRIES = 64
"""Ends of words at which cutting is tried, before a document stays whole."""
_AROUND = 64
"""Characters on each side of a cut that are looked at."""
_LONGEST = 1 << 18
"""Characters after which a byte-level tokenizer's text is cut even inside a word."""


@dataclass(frozen=True)
class Vocabulary:
    """What turns text into the ids of a model: `size` ids, a tokenizer.json where there is one, the
    id of end-of-text.

    `origin` is the data directory or checkpoint that they come from, for messages.
    """

    origin: Path
    tokenizer: Path | None
    eos: int | None
    size: int
    start_name: str = "eos"
    """The role of `eos` in results: "bos" where a model of others begins its texts with a token of
    its own."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with eos, pad and mask as its
    first three ids.

    Raises:
        UserError: `vocab_size` is too small for 256 bytes and the special tokens.
    """
    special = list(SPECIAL.values())
    if vocab_size < 256 + len(special):
        raise UserError(
            f"tokenizer.vocab_size is {vocab_size}; a byte-level tokenizer needs {256 + len(special)}"
        )
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
    tokenizer.train_from_iterator(
        (word for text in texts for piece in _cut(text) for word in _short(piece)), trainer
    )
    return read_special_names_as_text(tokenizer)


def read_special_names_as_text(tokenizer: Tokenizer) -> Tokenizer:
    """Let the tokenizer read `<|endoftext|>` and its like in a text as the characters that they
    are."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """Cut a long `text` into parts whose token ids, one after the other, are those of the whole.

    Tokenising takes over a hundred bytes of memory a character, so that a long document is
    tokenised part by part. It is cut after a word, where the tokenizer parts its words too and
    gives the same ids on both sides. A byte-level tokenizer's text without such a place is cut
    after `_LONGEST` characters, where a token may be lost to two.
    """
    parts, start = [], 0
    while len(text) - start > _PIECE:
        end = _seam(tokenizer, text, start + _PIECE)
        if end is None:
            break
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def _seam(tokenizer: Tokenizer, text: str, start: int) -> int | None:
    """The first place from `start` on where `text` may be cut; None where it may not."""
    for tried, found in enumerate(_SEAM.finditer(text, start, start + _LONGEST)):
        if tried == _TRIES:
            break
        end = found.start()
        if _parts_at(tokenizer, text[max(end - _AROUND, 0) : end], text[end : end + _AROUND]):
            return end
    return (
        start + _LONGEST
        if is_plain_byte_level(tokenizer) and len(text) - start > _LONGEST
        else None
    )


def _parts_at(tokenizer: Tokenizer, left: str, right: str) -> bool:
    """Whether no token of `left + right` crosses the place between them, nor depends on what lies
    beyond it."""
    if tokenizer.pre_tokenizer is None or _words(tokenizer, left) + _words(
        tokenizer, right
    ) != _words(tokenizer, left + right):
        return False
    ids = [
        tokenizer.encode(part, add_special_tokens=False).ids for part in (left, right, left + right)
    ]
    return ids[0] + ids[1] == ids[2]


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words that are tokenised one by one."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def encode(tokenizer: Tokenizer, text: str, where: str = "the text") -> np.ndarray:
    """Encode `text` as preparing data does, without added special tokens: ids (T,) int64.

    Raises:
        UserError: the text, named by `where`, holds the name of a special token that this tokenizer
            cannot read as text.
    """
    encoded = tokenizer.encode_batch_fast(pieces(tokenizer, text), add_special_tokens=False)
    ids = np.concatenate([np.array(part.ids, dtype=np.int64) for part in encoded])
    require_text(tokenizer, ids, where)
    return ids


def require_text(tokenizer: Tokenizer, ids: np.ndarray, where: str) -> None:
    """Refuse ids of special tokens among those of a text.

    Tokenizers that `load_tokenizer` opens read the name of a special token in a text as text. A few
    (Unigram models, models of whole words) know the name as a word too, and cannot.

    Raises:
        UserError: there is one, by its name and `where`.
    """
    found = np.intersect1d(ids, _control_ids(tokenizer))
    if found.size:
        raise UserError(
            f'{where} holds "{tokenizer.id_to_token(int(found[0]))}", which this tokenizer cannot read as text, but'
            " only as its special token: remove it from the text, or use another tokenizer"
        )


@functools.lru_cache(maxsize=4)
def _control_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Ids that no text should have: those of special tokens, except the one that stands for unknown
    characters."""
    added = tokenizer.get_added_tokens_decoder()
    special = {token for token, word in added.items() if word.special}
    named = (tokenizer.token_to_id(word) for words in _KNOWN.values() for word in words)
    model = json.loads(tokenizer.model.__getstate__())
    unknown = model.get("unk_id", tokenizer.token_to_id(model.get("unk_token") or ""))
    return np.array(
        sorted((special | {token for token in named if token is not None}) - {unknown}),
        dtype=np.int64,
    )


def _cut(text: str) -> list[str]:
    """`text` in parts that end before a space after a letter or digit, which no word of a
    byte-level BPE crosses."""
    parts, start = [], 0
    while found := _SPACE.search(text, start + _PIECE):
        parts.append(text[start : found.start()])
        start = found.start()
    return [*parts, text[start:]]


def _short(text: str) -> list[str]:
    """`text` in parts that end where a word (or white space) has become long: such are no words of
    a language."""
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
    return read_special_names_as_text(tokenizer)


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id; the ids of added tokens may leave gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def special_tokens(tokenizer: Tokenizer, vocab_size: int) -> dict[str, int]:
    """Ids of eos, pad and mask, those that exist; a free id below `vocab_size` serves as a missing
    mask.

    Raises:
        UserError: the tokenizer has no end-of-text token under a known name.
    """
    found = {
        role: next(i for i in map(tokenizer.token_to_id, words) if i is not None)
        for role, words in _KNOWN.items()
        if any(tokenizer.token_to_id(word) is not None for word in words)
    }
    if "eos" not in found:
        raise UserError(
            f"the tokenizer has no end-of-text token; one of {', '.join(_KNOWN['eos'])} is needed"
        )
    size = vocabulary_size(tokenizer)
    if "mask" not in found and size < vocab_size:
        found["mask"] = size
    return found
