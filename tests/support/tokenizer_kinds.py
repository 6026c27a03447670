"""Small tokenizers of the kinds that are met, each with an end-of-text token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SAMPLE = ["the king's crown falls  and\n\nthe queen weeps: 1603 — naïve Łódź 王\n"] * 20
EOS = "</s>"


def byte_level(normalizer: Any = None, *, space_first: bool = False, added: AddedToken | None = None) -> Tokenizer:
    """Byte-level BPE, as GPT-2 (with a space before each text: as RoBERTa; with NFC: as GPT-NeoX)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space_first)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if added is not None:
        tokenizer.add_tokens([added])
    return tokenizer


def llama3() -> Tokenizer:
    """Byte-level BPE whose words are parted by an expression of its own, with a template that adds tokens."""
    tokenizer = byte_level()
    parts = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([parts, whole])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{EOS} $A", special_tokens=[(EOS, 0)])
    return tokenizer


def wordpiece(*, lowercase: bool = False) -> Tokenizer:
    """WordPiece, as BERT: spaces are dropped, unknown words are one token."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", EOS], show_progress=False)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return tokenizer


def unigram(*, byte_fallback: bool) -> Tokenizer:
    """Unigram with Metaspace, as T5: a space is put before the text."""
    words = ["\u2581the", "\u2581king", "s", "ö", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = [("<unk>", 0.0), (EOS, 0.0), *((word, -1.0 - i) for i, word in enumerate(words))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def sentence_piece(normalizer: Any, *, mark: bool = True) -> Tokenizer:
    """BPE with bytes for unknown characters, as Llama 2; `mark`: the vocabulary has U+2581."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["<unk>", EOS, *bytes_, *"abcdefghijklmnopqrstuvwxyz", *(["\u2581"] if mark else [])]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizer
    last = decoders.Replace("\u2581", " ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), last])
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def whole_words() -> Tokenizer:
    """A word is a token, an unknown one too."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, EOS: 1, "the": 2, "king": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([EOS])
    return tokenizer


_SPACE = normalizers.Replace(" ", "\u2581")
_WITH_SPACE = normalizers.Sequence([normalizers.Prepend("\u2581"), _SPACE])

KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "llama 3": llama3,
    "byte level, NFC": lambda: byte_level(normalizers.NFC()),
    "byte level, NFKC": lambda: byte_level(normalizers.NFKC()),
    "byte level, lower case": lambda: byte_level(normalizers.Lowercase()),
    "byte level, space first": lambda: byte_level(space_first=True),
    "byte level, word that takes spaces": lambda: byte_level(added=AddedToken("crown", lstrip=True, special=False)),
    "byte level, added word": lambda: byte_level(added=AddedToken("Łódź", special=False, normalized=False)),
    "wordpiece": wordpiece,
    "wordpiece, lower case": lambda: wordpiece(lowercase=True),
    "unigram, bytes": lambda: unigram(byte_fallback=True),
    "unigram, unknown": lambda: unigram(byte_fallback=False),
    "sentencepiece": lambda: sentence_piece(_SPACE),
    "sentencepiece, no mark": lambda: sentence_piece(_SPACE, mark=False),
    "sentencepiece, space first": lambda: sentence_piece(_WITH_SPACE),
    "whole words": whole_words,
}
KNOWN = {"byte level", "llama 3", "byte level, added word", "sentencepiece"}
"""Kinds whose ids tell the bytes of any text."""
