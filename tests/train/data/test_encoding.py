"""Documents as ids: the same whether they are cut or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from pico_train.data import tokenizer as tokenizing
from pico_train.data.tokenizer import load_tokenizer, pieces, train_tokenizer
from tokenizers import Tokenizer

from ...support.tokenizer_kinds import KINDS
from .conftest import Make

SAMPLE = ["the king's crown falls  and\n\nthe queen weeps: 1603 — naïve Łódź 王\n"] * 20


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(SAMPLE, 300)


LONG = {
    "words": "the king's crown, falls 1603 ",
    "lines": "crown\n",
    "chinese": "\u738b\u540e\uff0c\u738b\u51a0\u843d\u4e0b\u3002",
    "combining": "e\u0301a\u0301 ",
    "one word": "ab1\u738b",
}


@pytest.mark.parametrize("text", LONG)
@pytest.mark.parametrize("kind", KINDS)
def test_cut_documents_have_the_ids_of_the_whole(kind: str, text: str, tmp_path: Path) -> None:
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    tokenizer, long = load_tokenizer(tmp_path), LONG[text] * 40
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "_PIECE", 50)
        parts = pieces(tokenizer, long)
    assert "".join(parts) == long
    ids = [i for part in parts for i in tokenizer.encode(part, add_special_tokens=False).ids]
    assert ids == tokenizer.encode(long, add_special_tokens=False).ids
    if kind in ("byte level", "llama 3") and text != "one word":
        assert len(parts) > 3


def test_stored_truncation_and_padding_do_not_touch_documents(make: Make, trained: Tokenizer, tmp_path: Path) -> None:
    limited = Tokenizer.from_str(trained.to_str())
    limited.enable_truncation(max_length=4)
    limited.enable_padding(length=64, pad_id=1, pad_token="<|pad|>")
    limited.save(str(tmp_path / "limited.json"))
    (tmp_path / "text.txt").write_text("the king's crown falls and the queen weeps%%short")
    data = make(
        {"path": str(tmp_path / "text.txt"), "separator": "%%"},
        tokenizer={"path": str(tmp_path / "limited.json"), "vocab_size": 300},
        seq_len=1,
    )
    texts = ["the king's crown falls and the queen weeps", "short"]
    assert data.manifest.splits["train"].tokens == sum(len(trained.encode(text).ids) + 1 for text in texts)
