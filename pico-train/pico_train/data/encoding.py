"""Documents to token ids, many at a time, and whether these stand for the bytes of their text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pico_contract.errors import UserError
from tokenizers import Tokenizer

from pico_train.data.byte_lengths import written_byte_lengths
from pico_train.data.sources import Document
from pico_train.data.tokenizer import pieces, require_text

_LOT = 1 << 20
"""Bytes of text (or ids, where a source is tokenised already) encoded at a time."""

Part = tuple[str, Document, bool]
"""(split, part of a document, whether it is the document's last)."""


class DocumentEncoder:
    """Encodes documents with a tokenizer; text ends with eos, documents that came as ids stay as
    they are."""

    def __init__(self, tokenizer: Tokenizer | None, eos: int | None, vocab_size: int) -> None:
        self._tokenizer, self._eos, self._vocab_size = tokenizer, eos, vocab_size
        self._lengths = written_byte_lengths(tokenizer) if tokenizer is not None else None
        self._texts = self._others = 0
        self._is_exact = True

    @property
    def token_bytes(self) -> str:
        """Whether the ids of every text so far stand for as many bytes as it has, as data.json
        states it."""
        if not self._texts or self._others:
            return ""
        return "exact" if self._is_exact else "not exact"

    def __call__(
        self, pairs: Iterator[tuple[str, Document]], where: str
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Give (split, token ids) of every document of the source `where`.

        Raises:
            UserError: text without a tokenizer, an id outside the vocabulary, or a text that holds
                the name of a special token and cannot be read as text.
        """
        begun: list[np.ndarray] = []
        n_bytes, number = 0, 0
        for lot in _lots(self._parts(pairs, where)):
            encoded = iter(
                self._ids([content for _, content, _ in lot if isinstance(content, str)])
            )
            for split, content, is_last in lot:
                number += is_last
                if not isinstance(content, str):
                    self._others += 1
                    yield split, self._checked(content, where)
                    continue
                begun.append(next(encoded))
                n_bytes += len(content.encode())
                if is_last:
                    yield (
                        split,
                        self._finished(
                            np.concatenate(begun), n_bytes, f'"{where}", document {number:,},'
                        ),
                    )
                    begun.clear()
                    n_bytes = 0

    def _parts(self, pairs: Iterator[tuple[str, Document]], where: str) -> Iterator[Part]:
        for split, document in pairs:
            if not isinstance(document, str):
                yield split, document, True
            elif self._tokenizer is None:
                raise UserError(f'"{where}" mixes text with token ids: set tokenizer.path')
            else:
                *begin, end = pieces(self._tokenizer, document)
                yield from ((split, piece, False) for piece in begin)
                yield split, end, True

    def _ids(self, texts: list[str]) -> list[np.ndarray]:
        if self._tokenizer is None:
            return []
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(part.ids, dtype=np.int64) for part in encoded]

    def _finished(self, ids: np.ndarray, n_bytes: int, where: str) -> np.ndarray:
        assert self._tokenizer is not None
        assert self._lengths is not None
        assert self._eos is not None
        require_text(self._tokenizer, ids, where)
        self._texts += 1
        self._is_exact = self._is_exact and int(self._lengths[ids].sum()) == n_bytes
        return np.append(ids, self._eos)

    def _checked(self, ids: np.ndarray, where: str) -> np.ndarray:
        outside = ids[(ids < 0) | (ids >= self._vocab_size)]
        if outside.size:
            is_own = self._tokenizer is None
            remedy = (
                "set tokenizer.vocab_size"
                if is_own
                else "tokenizer.path is not the tokenizer that made it"
            )
            named = f'"{where}" holds the token id {outside[0]}'
            raise UserError(f"{named}, outside a vocabulary of {self._vocab_size}: {remedy}")
        return ids


def _lots(parts: Iterator[Part]) -> Iterator[list[Part]]:
    lot: list[Part] = []
    size = 0
    for part in parts:
        lot.append(part)
        size += len(part[1].encode() if isinstance(part[1], str) else part[1]) + 1
        if size >= _LOT:
            yield lot
            lot, size = [], 0
    yield lot
