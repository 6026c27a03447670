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
"""Special tokens of the tokenizers that are trained here, by role."""
_KNOWN = {
    "eos": ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>"),
    "pad": ("<|pad|>", "<|padding|>", "<pad>", "[PAD]"),
    "mask": ("<|mask|>", "<mask>", "[MASK]"),
}
"""Names of special tokens in existing tokenizers, by role, the first one preferred."""
_PIECE = 1 << 16
"""Characters after which a document may be cut for tokenising."""
_WORD = 1 << 12
"""Characters after which a word is cut for training.
The library's time grows with the square of a word's length."""
_LONG = re.compile(rf"\S{{{_WORD}}}|\s{{{_WORD}}}")
"""A run of non-space (or space) characters that has reached `_WORD`."""
_SPACE = re.compile(r"(?<=\w) ")
"""A space after a letter or digit, which begins a word of a byte-level BPE."""
_SEAM = re.compile(r"(?<=\w)(?=\W)")
"""The end of a word, whatever follows: a space, a line end, punctuation of any script."""
_TRIES = 64
"""Ends of words at which a cut is tried before a document stays whole."""
_AROUND = 64
"""Characters on each side of a cut that are compared."""
_LONGEST = 1 << 18
"""Characters after which a byte-level tokenizer's text is cut even inside a word."""


@dataclass(frozen=True)
class Vocabulary:
    """A model's vocabulary: how its text becomes ids."""

    origin: Path
    """The data directory or checkpoint that it comes from, for messages."""
    tokenizer: Path | None
    """The file tokenizer.json, if there is one."""
    eos: int | None
    """The id of end-of-text."""
    size: int
    """The number of ids."""
    start_name: str = "eos"
    """The name of `eos` in results: "bos" if a foreign model begins texts with a separate token."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019).

    Its first three ids are eos, pad and mask.

    Raises:
        UserError: `vocab_size` is too small for 256 bytes and the special tokens.
    """
    special = list(SPECIAL.values())
    # One id for each byte, so that any text can be encoded.
    smallest = 256 + len(special)
    if vocab_size < smallest:
        raise UserError(
            f"tokenizer.vocab_size is {vocab_size}; a byte-level tokenizer needs {smallest}"
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
    # Parts, because the library's time grows with the length of a word.
    words = (word for text in texts for piece in _cut(text) for word in _short(piece))
    tokenizer.train_from_iterator(words, trainer)
    return read_special_names_as_text(tokenizer)


def read_special_names_as_text(tokenizer: Tokenizer) -> Tokenizer:
    """Make the tokenizer read `<|endoftext|>` and its like in a text as ordinary characters."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """Cut a long `text` into parts whose token ids, joined, are those of the whole.

    Tokenising takes over a hundred bytes of memory a character, so that a long document is
    tokenised part by part. A cut is after a word, at a place that no token crosses. If a
    byte-level tokenizer's text has no such place, it is cut after `_LONGEST` characters, where
    one token may become two.
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
    """Return the first place from `start` on at which `text` may be cut, or None."""
    last_resort = start + _LONGEST
    word_ends = _SEAM.finditer(text, start, last_resort)
    for match in itertools.islice(word_ends, _TRIES):
        end = match.start()
        # A window around the cut decides, since comparing whole texts would be slow.
        left = text[max(end - _AROUND, 0) : end]
        right = text[end : end + _AROUND]
        if _divides_between(tokenizer, left, right):
            return end
    # Every cut of a byte-level tokenizer's text is valid, if not always equal; others stay whole.
    is_too_long = len(text) > last_resort
    return last_resort if is_too_long and is_plain_byte_level(tokenizer) else None


def _divides_between(tokenizer: Tokenizer, left: str, right: str) -> bool:
    """Return whether `left + right` has the words and ids of both, one after the other."""
    if tokenizer.pre_tokenizer is None:
        return False
    # Ids alone do not suffice: a word may merge differently in another context.
    words_apart = _words(tokenizer, left) + _words(tokenizer, right)
    if words_apart != _words(tokenizer, left + right):
        return False
    ids_apart = _ids(tokenizer, left) + _ids(tokenizer, right)
    return ids_apart == _ids(tokenizer, left + right)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the words of `text`, which the tokenizer encodes one by one."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def encode(tokenizer: Tokenizer, text: str, where: str = "the text") -> np.ndarray:
    """Encode `text` as preparing data does, without added special tokens: ids (T,) int64.

    `where` names the text in errors.

    Raises:
        UserError: the text holds the name of a special token that this tokenizer cannot read as
            text.
    """
    parts = pieces(tokenizer, text)
    encoded = tokenizer.encode_batch_fast(parts, add_special_tokens=False)
    part_ids = [np.array(part.ids, dtype=np.int64) for part in encoded]
    ids = np.concatenate(part_ids)
    require_text(tokenizer, ids, where)
    return ids


def require_text(tokenizer: Tokenizer, ids: np.ndarray, where: str) -> None:
    """Refuse ids of special tokens among those of a text.

    Tokenizers that `load_tokenizer` opens read the name of a special token in a text as text. A few
    (Unigram models, models of whole words) cannot, because the name is a word of theirs too.

    Raises:
        UserError: there is one, by its name and `where`.
    """
    control = np.intersect1d(ids, _control_ids(tokenizer))
    if control.size:
        raise UserError(
            f'{where} holds "{tokenizer.id_to_token(int(control[0]))}", which this tokenizer cannot read as text, but'
            " only as its special token: remove it from the text, or use another tokenizer"
        )


@functools.lru_cache(maxsize=4)
def _control_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Return the ids that no text should have: all special tokens except the unknown token."""
    added = tokenizer.get_added_tokens_decoder()
    control = {token for token, word in added.items() if word.special}
    for word in itertools.chain.from_iterable(_KNOWN.values()):
        # An older file may list a special token as an ordinary word.
        token = tokenizer.token_to_id(word)
        if token is not None:
            control.add(token)
    control.discard(_unknown_id(tokenizer))
    return np.array(sorted(control), dtype=np.int64)


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id that stands for unknown characters, if there is one."""
    model = json.loads(tokenizer.model.__getstate__())
    if "unk_id" in model:
        return model["unk_id"]
    return tokenizer.token_to_id(model.get("unk_token") or "")


def _cut(text: str) -> list[str]:
    """Divide `text` before spaces that no word of a byte-level BPE crosses."""
    parts, start = [], 0
    while match := _SPACE.search(text, start + _PIECE):
        parts.append(text[start : match.start()])
        start = match.start()
    return [*parts, text[start:]]


def _short(text: str) -> list[str]:
    """Divide `text` after each run of `_WORD` characters, which is not a word of a language."""
    cuts = [match.end() for match in _LONG.finditer(text)]
    ends = [0, *cuts, len(text)]
    return [text[start:end] for start, end in itertools.pairwise(ends)]


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer in a tokenizer.json, or in a directory that holds one.

    Raises:
        UserError: it does not exist, or does not parse.
    """
    file = path / TOKENIZER if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no tokenizer at {file}")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{file} is not a tokenizer.json: {error}") from None
    # A stored limit or padding would shorten or fill documents without a word.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return read_special_names_as_text(tokenizer)


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Return one more than the largest id; the ids of added tokens may leave gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def special_tokens(tokenizer: Tokenizer, vocab_size: int) -> dict[str, int]:
    """Return the ids of eos, pad and mask that exist.

    A free id below `vocab_size` serves as a missing mask.

    Raises:
        UserError: the tokenizer has no end-of-text token under a known name.
    """
    special: dict[str, int] = {}
    for role, words in _KNOWN.items():
        ids = [tokenizer.token_to_id(word) for word in words]
        known = [token for token in ids if token is not None]
        if known:
            special[role] = known[0]
    if "eos" not in special:
        raise UserError(
            f"the tokenizer has no end-of-text token; one of {', '.join(_KNOWN['eos'])} is needed"
        )
    # Objectives with a mask need an id even if the tokenizer has none.
    size = vocabulary_size(tokenizer)
    if "mask" not in special and size < vocab_size:
        special["mask"] = size
    return special
