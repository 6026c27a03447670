"""Encoding: documents to token ids in lots, checked against the bytes of their text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pico_contract.errors import UserError
from tokenizers import Tokenizer

from pico_train.data.byte_lengths import written_byte_lengths
from pico_train.data.sources import Document
from pico_train.data.tokenizer import pieces, require_text

_LOT = 1 << 20
"""Bytes of text (or ids of tokenised documents) that are encoded at a time."""

Part = tuple[str, Document, bool]
"""(split, part of a document, whether it is the document's last)."""


class DocumentEncoder:
    """An encoder of documents. Texts end with eos; documents of ids stay unchanged."""

    def __init__(self, tokenizer: Tokenizer | None, eos: int | None, vocab_size: int) -> None:
        self._tokenizer, self._eos, self._vocab_size = tokenizer, eos, vocab_size
        self._lengths = written_byte_lengths(tokenizer) if tokenizer is not None else None
        self._n_texts = self._n_id_documents = 0
        self._is_exact = True

    @property
    def token_bytes(self) -> str:
        """The entry of data.json: whether the ids of every text so far add up to its bytes."""
        if not self._n_texts or self._n_id_documents:
            return ""
        return "exact" if self._is_exact else "not exact"

    def __call__(
        self, pairs: Iterator[tuple[str, Document]], where: str
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (split, token ids) of every document of the source `where`.

        Raises:
            UserError: text without a tokenizer, an id outside the vocabulary, or a text that holds
                the name of a special token and cannot be read as text.
        """
        begun: list[np.ndarray] = []  # ids of the parts of the current document
        n_bytes, number = 0, 0
        # Lots bound the memory, and let the tokenizer encode short documents in parallel.
        for lot in _lots(self._parts(pairs, where)):
            encoded = self._encode_texts(lot)
            for split, content, is_last in lot:
                number += is_last
                if not isinstance(content, str):
                    self._n_id_documents += 1
                    yield split, self._checked(content, where)
                    continue
                begun.append(next(encoded))
                n_bytes += len(content.encode())
                if is_last:
                    name = f'"{where}", document {number:,},'
                    yield split, self._finished(np.concatenate(begun), n_bytes, name)
                    begun.clear()
                    n_bytes = 0

    def _parts(self, pairs: Iterator[tuple[str, Document]], where: str) -> Iterator[Part]:
        """Yield documents in parts short enough to encode."""
        for split, document in pairs:
            if not isinstance(document, str):
                yield split, document, True
            elif self._tokenizer is None:
                raise UserError(f'"{where}" mixes text with token ids: set tokenizer.path')
            else:
                # A long text comes in parts, of which only the last ends the document.
                *begin, end = pieces(self._tokenizer, document)
                yield from ((split, piece, False) for piece in begin)
                yield split, end, True

    def _encode_texts(self, lot: list[Part]) -> Iterator[np.ndarray]:
        """Return the ids of the texts among the parts, in order."""
        texts = [content for _, content, _ in lot if isinstance(content, str)]
        if self._tokenizer is None:
            return iter(())
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return iter([np.array(part.ids, dtype=np.int64) for part in encoded])

    def _finished(self, ids: np.ndarray, n_bytes: int, where: str) -> np.ndarray:
        """Check the ids of a whole text, and append eos."""
        assert self._tokenizer is not None
        assert self._lengths is not None
        assert self._eos is not None
        require_text(self._tokenizer, ids, where)
        self._n_texts += 1
        self._is_exact = self._is_exact and int(self._lengths[ids].sum()) == n_bytes
        return np.append(ids, self._eos)

    def _checked(self, ids: np.ndarray, where: str) -> np.ndarray:
        """Return the ids of a tokenised document; refuse ids outside the vocabulary."""
        outside = ids[(ids < 0) | (ids >= self._vocab_size)]
        if not outside.size:
            return ids
        if self._tokenizer is None:
            remedy = "set tokenizer.vocab_size"
        else:
            remedy = "tokenizer.path is not the tokenizer that made it"
        raise UserError(
            f'"{where}" holds the token id {outside[0]}, outside a vocabulary of {self._vocab_size}: {remedy}'
        )


def _lots(parts: Iterator[Part]) -> Iterator[list[Part]]:
    """Group parts into lists of about `_LOT` bytes."""
    lot: list[Part] = []
    size = 0
    for part in parts:
        lot.append(part)
        content = part[1]
        # One more a part, so that empty parts count too.
        size += len(content.encode() if isinstance(content, str) else content) + 1
        if size >= _LOT:
            yield lot
            lot, size = [], 0
    yield lot
