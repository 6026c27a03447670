"""Tokenizers: a byte-level BPE trained in seconds, or an existing tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable
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
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, or in a directory that holds one.

    Raises:
        UserError: there is none, or it does not parse.
    """
    file = path / TOKENIZER if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no tokenizer at {file}")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{file} is not a tokenizer.json: {error}") from None


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
    if "mask" not in found and tokenizer.get_vocab_size() < vocab_size:
        found["mask"] = tokenizer.get_vocab_size()
    return found


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of UTF-8 that each id stands for, (vocab,) int64; 0 for special tokens.

    Byte-level BPE writes every byte as one printable character, so a token's length in characters is its length in
    bytes; for other tokenizers the decoded text is measured.
    """
    special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
    lengths = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=np.int64)
    for word, token in tokenizer.get_vocab().items():
        if token not in special:
            lengths[token] = len(word) if byte_level else len(tokenizer.decode([token]).encode())
    return lengths
