"""Tokenizers: reserved ids, existing ones, and cutting where it changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pico_contract.errors import UserError
from pico_train.data import tokenizer as tokenizing
from pico_train.data.byte_lengths import written_byte_lengths
from pico_train.data.tokenizer import load_tokenizer, pieces, special_tokens, token_byte_lengths, train_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ...support.tokenizer_kinds import KINDS
from .conftest import Make

SAMPLE = ["the king's crown falls  and\n\nthe queen weeps: 1603 — naïve Łódź 王\n"] * 20
AROUND_SPACES = st.text(alphabet="ab'sL王ń9.,-_\n\t \u00a0\u0301", max_size=60)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(SAMPLE, 300)


def sentence_piece(tmp_path: Path, special: list[str]) -> Path:
    """A small tokenizer in the manner of SentencePiece: U+2581 for spaces, bytes for unknown characters."""
    words = ["\u2581the", "\u2581king", "s", "ö", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = [("<unk>", 0.0), *((word, -1.0 - i) for i, word in enumerate(words))]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_the_first_ids_are_reserved(trained: Tokenizer) -> None:
    words = ["<|endoftext|>", "<|pad|>", "<|mask|>"]
    assert [trained.token_to_id(word) for word in words] == [0, 1, 2]
    assert special_tokens(trained, 300) == {"eos": 0, "pad": 1, "mask": 2}


def test_any_text_is_encoded_without_loss(trained: Tokenizer) -> None:
    text = "".join(map(chr, [*range(1, 300), 0x2581, 0x738B, 0x1F642]))
    assert trained.decode(trained.encode(text).ids) == text


def test_the_vocabulary_is_no_larger_than_asked_for() -> None:
    assert train_tokenizer(SAMPLE, 270).get_vocab_size() == 270
    assert train_tokenizer(["ab"], 5000).get_vocab_size() == 260


def test_training_cuts_text_where_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_tokenizer([SAMPLE[0] * 20], 300).to_str()
    monkeypatch.setattr(tokenizing, "_PIECE", 7)
    assert train_tokenizer([SAMPLE[0] * 20], 300).to_str() == whole


@pytest.mark.parametrize("long", ["ab" * 100_000, " " * 200_000])
def test_training_cuts_words_whose_length_would_cost_its_square(long: str) -> None:
    """As one word these 200,000 characters take a minute, and a line of three million takes hours."""
    parts = tokenizing._short(f"a {long} b")
    assert "".join(parts) == f"a {long} b"
    assert max(map(len, parts)) <= tokenizing._WORD + 2
    assert tokenizing._short(SAMPLE[0]) == [SAMPLE[0]]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing.Tokenizer, "train_from_iterator", lambda self, texts, trainer: seen.extend(texts))
        train_tokenizer([long], 300)
    assert max(map(len, seen)) <= tokenizing._WORD


@hypothesis_settings(deadline=None)
@given(text=AROUND_SPACES, length=st.integers(1, 9))
def test_pieces_have_the_ids_of_the_whole(trained: Tokenizer, text: str, length: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "_PIECE", length)
        parts = pieces(trained, text)
    assert "".join(parts) == text
    assert [i for part in parts for i in trained.encode(part).ids] == trained.encode(text).ids


def test_pieces_are_short_where_there_are_spaces(trained: Tokenizer) -> None:
    parts = pieces(trained, "word " * 100_000)
    assert max(map(len, parts)) <= (1 << 16) + 5
    assert len(parts) == 8


def test_text_without_any_seam_is_cut_all_the_same(monkeypatch: pytest.MonkeyPatch, trained: Tokenizer) -> None:
    """A token at most is lost at each cut; of other tokenizers a cut would add spaces, and they keep it whole."""
    monkeypatch.setattr(tokenizing, "_PIECE", 50)
    monkeypatch.setattr(tokenizing, "_LONGEST", 200)
    text = "king" * 500
    parts = pieces(trained, text)
    assert "".join(parts) == text
    assert max(map(len, parts)) <= 250
    ids = [i for part in parts for i in trained.encode(part).ids]
    assert 0 <= len(ids) - len(trained.encode(text).ids) <= 2 * len(parts)
    assert pieces(KINDS["sentencepiece, space first"](), text) == [text]
    assert pieces(KINDS["byte level, space first"](), text) == [text]


def test_an_existing_tokenizer_is_taken_from_a_file_or_a_directory(
    make: Make, trained: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("the king's crown falls")
    trained.save(str(tmp_path / "tokenizer.json"))
    for number, path in enumerate([tmp_path, tmp_path / "tokenizer.json"]):
        data = make(tmp_path / "text.txt", f"out{number}", tokenizer={"path": str(path)})
        assert load_tokenizer(data.path).to_str() == trained.to_str()
        assert data.manifest.vocab_size == 300


@pytest.mark.parametrize(
    ("words", "roles"),
    [
        (["</s>", "<pad>", "<mask>"], {"eos": 261, "pad": 262, "mask": 263}),
        (["[PAD]", "<|end_of_text|>"], {"eos": 262, "pad": 261, "mask": 263}),
        (["<eos>"], {"eos": 261, "mask": 262}),
    ],
)
def test_special_tokens_are_found_under_usual_names_and_a_free_id_serves_as_mask(
    tmp_path: Path, words: list[str], roles: dict[str, int]
) -> None:
    assert special_tokens(load_tokenizer(sentence_piece(tmp_path, words)), 50_304) == roles


def test_without_a_free_id_there_is_no_mask(make: Make, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the king s the king s the king")
    path = sentence_piece(tmp_path, ["</s>"])
    full = make(tmp_path / "text.txt", "full", tokenizer={"path": str(path), "vocab_size": 262}, seq_len=4)
    assert full.manifest.special_tokens == {"eos": 261}
    assert full.manifest.vocab_size == 262
    roomy = make(tmp_path / "text.txt", "roomy", tokenizer={"path": str(path), "vocab_size": 263}, seq_len=4)
    assert roomy.manifest.special_tokens == {"eos": 261, "mask": 262}
    assert roomy.manifest.vocab_size == 263


def with_gap(tokenizer: Tokenizer, path: Path) -> Path:
    """The tokenizer with its last id moved up, as where added tokens leave ids free."""
    raw = json.loads(tokenizer.to_str())
    raw["model"]["vocab"]["<|late|>"] = 320
    raw["added_tokens"].append({**raw["added_tokens"][0], "id": 320, "content": "<|late|>", "special": False})
    path.write_text(json.dumps(raw))
    return path


def test_gaps_among_the_ids_count_for_the_vocabulary(make: Make, tmp_path: Path) -> None:
    """The number of tokens is below the largest id, which data may hold."""
    (tmp_path / "text.txt").write_text("the king <|late|> weeps and falls")
    raw = train_tokenizer(SAMPLE, 300)
    assert with_gap(raw, tmp_path / "gap.json").is_file()
    data = make(tmp_path / "text.txt", tokenizer={"path": str(tmp_path / "gap.json"), "vocab_size": 400})
    assert data.manifest.vocab_size == 321
    assert 320 in data.split("train").take(np.array([0]))
    assert len(written_byte_lengths(load_tokenizer(data.path))) == 321


def test_a_tokenizer_without_end_of_text_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the king s")
    path = sentence_piece(tmp_path, ["<pad>"])
    assert refused(tmp_path / "text.txt", tokenizer={"path": str(path)}) == (
        "the tokenizer has no end-of-text token; one of <|endoftext|>, </s>, <|end_of_text|>, <eos> is needed"
    )


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no tokenizer at .*tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json is not a tokenizer.json: "):
        load_tokenizer(tmp_path)


@hypothesis_settings(deadline=None)
@given(text=st.text(max_size=40))
def test_byte_lengths_add_up_to_the_bytes_of_the_text(trained: Tokenizer, text: str) -> None:
    text = text.replace("<|", "")
    lengths = token_byte_lengths(trained)
    assert lengths[trained.encode(text).ids].sum() == len(text.encode())
    assert lengths[:3].tolist() == [0, 0, 0]


def test_written_lengths_of_spaces_bytes_and_added_words(tmp_path: Path) -> None:
    """As SentencePiece writes them: the first word brings a space that the text does not have."""
    tokenizer = load_tokenizer(sentence_piece(tmp_path, ["</s>"]))
    assert token_byte_lengths(tokenizer) is None
    tokenizer.add_tokens([AddedToken("Łódź", special=False)])
    lengths = written_byte_lengths(tokenizer)
    for word, length in {"\u2581king": 5, "s": 1, "ö": 2, "<0xE7>": 1, "</s>": 0, "Łódź": 7}.items():
        assert lengths[tokenizer.token_to_id(word)] == length, word
    ids = tokenizer.encode("the kings王").ids
    assert lengths[ids].sum() == len(" the kings王".encode())


def test_real_text_is_packed_as_it_is(make: Make) -> None:
    """WikiText-2's validation text, a document an article, against the tokenizer applied to each article alone."""
    folder = os.environ.get("PICO_TEST_DATA")
    if folder is None:
        pytest.skip("PICO_TEST_DATA is unset")
    path = Path(folder) / "wikitext-2" / "valid.txt"
    source = {"path": str(path), "separator": "\n \n \n"}
    data = make(source, seq_len=128, tokenizer={"vocab_size": 2000}, validation_fraction=0.1)
    tokenizer = load_tokenizer(data.path)
    parts = [p for p in path.read_text(encoding="utf-8").split("\n \n \n") if p.strip()]
    counts = {name: info.documents for name, info in data.manifest.splits.items()}
    assert sum(counts.values()) == len(parts) > 20
    assert counts["validation"] > 0
    rows = data.split("train")
    ids = rows.take(np.arange(rows.n_rows)).ravel()
    starts = rows.documents[rows.documents < ids.size]
    assert (ids[starts[1:] - 1] == 0).all()
    found = [ids[a : b - 1].tolist() for a, b in pairwise(starts)]
    expected = {tuple(tokenizer.encode(part).ids) for part in parts}
    assert all(tuple(document) in expected for document in found)
    info = data.manifest.splits["train"]
    assert info.tokens == ids.size + info.dropped_tokens
    assert 2.5 < path.stat().st_size / sum(i.tokens for i in data.manifest.splits.values()) < 5
