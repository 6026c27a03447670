"""Bytes of text by kind of tokenizer: right, or not stated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pico_train.data.packed import PackedData
from pico_train.data.tokenizer import Vocabulary, encode, load_tokenizer, token_byte_lengths, vocabulary_size
from pico_train.evaluate.likelihood import TextEncoder
from tokenizers import Tokenizer

from ...support.tokenizer_kinds import EOS, KINDS, KNOWN
from .conftest import Make

TEXTS = [
    "the king",
    "kings  and\n\tqueens",
    "ferrying Łódź",
    "The King's crown — 王 ½",
    "ﬁne e\u0301tude",
    " crown",
    "a b c",
    "x",
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(kind: str, tmp_path: Path) -> Tokenizer:
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    return load_tokenizer(tmp_path)


def test_ids_tell_the_bytes_of_every_text_or_none(kind: str, tokenizer: Tokenizer) -> None:
    lengths = token_byte_lengths(tokenizer)
    assert (lengths is not None) == (kind in KNOWN)
    for text in TEXTS if lengths is not None else []:
        assert lengths[encode(tokenizer, text)].sum() == len(text.encode()), text


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_an_evaluated_text_are_its_own(tokenizer: Tokenizer, tmp_path: Path, text: str) -> None:
    """Also under none, less those up to the end of the first token, by the offsets that the library gives."""
    eos = tokenizer.token_to_id(EOS)
    vocabulary = Vocabulary(tmp_path, tmp_path / "tokenizer.json", eos, vocabulary_size(tokenizer))
    after_eos, bare = (TextEncoder(vocabulary, start) for start in ("eos", "none"))
    assert after_eos.predicted_bytes(text, after_eos(text)) == len(text.encode())
    ids = bare(text)
    end = tokenizer.encode(text, add_special_tokens=False).offsets[0][1]
    first = tokenizer.id_to_token(int(ids[0]))
    is_part = first.startswith("<0x") or (len(first) < len(text[:end].encode()) and ord(text[:end][-1]) > 127)
    if not is_part:  # a token that is a part of a character has an offset of the whole
        assert bare.predicted_bytes(text, ids) == len(text[end:].encode())


def test_ids_that_came_without_text(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    vocabulary = Vocabulary(tmp_path, tmp_path / "tokenizer.json", 0, vocabulary_size(tokenizer))
    encoder, ids = TextEncoder(vocabulary, "eos"), encode(tokenizer, "the king")
    assert encoder.predicted_bytes(ids, encoder(ids)) == (8 if kind in KNOWN else None)
    assert ("bytes" in encoder.settings()) == (kind not in KNOWN)


PLAIN = "the king and the queen"
"""Of this text the normalizers change nothing; what is put before it, or dropped, is still not counted."""
EXACT_ON_PLAIN = {*KNOWN, "byte level, NFC", "byte level, NFKC", "byte level, lower case"}
EXACT_ON_PLAIN |= {"byte level, word that takes spaces"}


@pytest.mark.parametrize("text", [PLAIN, "The ﬁne crown of e\u0301tudes"])
def test_rows_state_their_bytes_where_each_document_was_compared(
    kind: str, tokenizer: Tokenizer, make: Make, tmp_path: Path, text: str
) -> None:
    """Normalizers do no harm where the text has nothing for them to change."""
    (tmp_path / "text.txt").write_text("%%".join([text] * 30))
    source = {"path": str(tmp_path / "text.txt"), "separator": "%%"}
    path = {"path": str(tmp_path / "tokenizer.json"), "vocab_size": vocabulary_size(tokenizer)}
    data = make(source, tokenizer=path, seq_len=2)
    lengths = data.token_byte_lengths()
    # A lower-case letter takes as many bytes, so that these are right too.
    expected = kind in (EXACT_ON_PLAIN if text == PLAIN else {*KNOWN, "byte level, lower case"})
    assert data.manifest.token_bytes == ("exact" if expected else "not exact")
    assert (lengths is not None) == expected
    if lengths is not None:
        rows = data.split("train")
        starts = rows.documents[:2]
        ids = rows.take(np.arange(rows.n_rows)).ravel()[starts[0] : starts[1]]
        assert lengths[ids].sum() == len(text.encode())


def test_data_of_earlier_versions_go_by_the_kind(kind: str, tokenizer: Tokenizer, make: Make, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(PLAIN * 20)
    path = {"path": str(tmp_path / "tokenizer.json"), "vocab_size": vocabulary_size(tokenizer)}
    data = make(tmp_path / "text.txt", tokenizer=path, seq_len=2)
    data.manifest.token_bytes = ""
    assert (PackedData(data.path, data.manifest).token_byte_lengths() is not None) == (kind in KNOWN)
