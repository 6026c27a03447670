"""Documents to packed rows: tokenise, concatenate, cut, split by document."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import DataLayout
from pico_contract.schema import DataManifest, SplitInfo
from pydantic import Field
from tokenizers import Tokenizer

from pico_train.config import Section
from pico_train.data.packed import PackedData, PackedWriter, is_made, smallest_dtype
from pico_train.data.sources import Document, SourceConfig, documents
from pico_train.data.tokenizer import load_tokenizer, pieces, special_tokens, train_tokenizer, vocabulary_size
from pico_train.seeds import derive

_LOT = 1 << 20
"""Characters (or ids, where a source is tokenised already) encoded at a time."""


class TokenizerConfig(Section):
    """A tokenizer of our own, or an existing one."""

    path: Path | None = None
    """tokenizer.json or a directory that holds one; null trains a byte-level BPE on the training documents."""
    vocab_size: int = Field(50_304, ge=1)
    """Vocabulary to train; with an existing tokenizer, the vocabulary of the models that will read the data."""
    sample_characters: int = Field(100_000_000, ge=1)
    """The tokenizer is trained on documents up to this many characters."""


class PrepareConfig(Section):
    """How a data directory is made. Equal settings and sources give equal bytes."""

    source: SourceConfig
    """Training documents (and validation documents, unless `validation_source` is given)."""
    out: Path
    """The data directory to make."""
    seq_len: int = Field(2048, ge=1)
    """Tokens that a row predicts; a row holds one more id."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Tokenizer."""
    validation_fraction: float = Field(0.01, ge=0, lt=1)
    """Share of documents, drawn by a hash of (seed, number of the document), that are held out; 0 is off."""
    validation_source: SourceConfig | None = None
    """Held-out documents from a source of their own, instead of a fraction."""
    max_tokens: int | None = Field(None, ge=1)
    """Stop after this many tokens of the source; null is all."""
    licence: str = "unknown"
    """Licence of the source, recorded with the data."""
    seed: int = 0
    """Chooses the held-out documents."""


def prepare(config: PrepareConfig, say: Callable[[str], None] = lambda line: None) -> Path:
    """Make the data directory `config.out`, whole or not at all; one that was made with equal settings is kept.

    Raises:
        UserError: another data directory lies there, the source is unusable, or a split ends up without a row.
    """
    layout, settings = DataLayout(config.out), config.model_dump(mode="json", exclude={"out"})
    if is_made(config.out, settings):
        say(f"{config.out} is prepared already; delete it to prepare it again")
        return config.out
    tokenizer = _tokenizer(config)
    with codec.publish(config.out) as draft:
        manifest = _write(config, tokenizer, DataLayout(draft))
        manifest.settings = settings
        codec.seal(draft, manifest, layout.manifest.name)
    for split, info in manifest.splits.items():
        say(f"{split}: {info.documents} documents, {info.tokens:,} tokens, {info.rows:,} rows of {config.seq_len + 1}")
    return config.out


def _tokenizer(config: PrepareConfig) -> Tokenizer | None:
    """The tokenizer to encode with; None where the source is tokenised already and none is given."""
    if config.tokenizer.path is not None:
        return load_tokenizer(config.tokenizer.path)
    texts = (document for split, document in _source(config) if split == "train")
    first = next(texts, None)
    if first is None:
        raise UserError(f'no document of "{config.source.path}" is left for training')
    if not isinstance(first, str):
        return None
    return train_tokenizer(_sample(itertools.chain([first], texts), config), config.tokenizer.vocab_size)


def _sample(texts: Iterator[Document], config: PrepareConfig) -> Iterator[str]:
    budget = config.tokenizer.sample_characters
    for text in texts:
        yield str(text)[:budget]
        budget -= len(text)
        if budget <= 0:
            return


def _source(config: PrepareConfig) -> Iterator[tuple[str, Document]]:
    """(split, document) of every document of the source, in order."""
    fraction = config.validation_fraction if config.validation_source is None else 0.0
    count = 0
    for count, document in enumerate(documents(config.source), start=1):
        held_out = derive(config.seed, "validation", count) / 2**63 < fraction
        yield ("validation" if held_out else "train"), document
    if count == 1 and fraction > 0:
        raise UserError(
            f'"{config.source.path}" is a single document, of which none can be held out: set source.separator to part'
            " it, validation_source to another text, or validation_fraction=0"
        )


def _write(config: PrepareConfig, tokenizer: Tokenizer | None, layout: DataLayout) -> DataManifest:
    vocab_size = config.tokenizer.vocab_size
    special: dict[str, int] = {}
    if tokenizer is not None:
        codec.write_text(layout.tokenizer, tokenizer.to_str(pretty=True))
        special = special_tokens(tokenizer, vocab_size)
        vocab_size = max(vocabulary_size(tokenizer), *(i + 1 for i in special.values()))
    encode = partial(_encoded, tokenizer=tokenizer, eos=special.get("eos"), vocab_size=vocab_size)
    dtype = smallest_dtype(vocab_size)
    wants_validation = config.validation_source is not None or config.validation_fraction > 0
    splits = ("train", "validation") if wants_validation else ("train",)
    with ExitStack() as files:
        writers = {s: files.enter_context(PackedWriter(layout, s, config.seq_len, dtype)) for s in splits}
        for split, ids in _limited(encode(_source(config), config.source.path), config.max_tokens):
            writers[split].add(ids)
        if config.validation_source is not None:
            held_out = (("validation", document) for document in documents(config.validation_source))
            for split, ids in encode(held_out, config.validation_source.path):
                writers[split].add(ids)
        closed = {split: writer.close() for split, writer in writers.items()}
    _require_rows(config, {split: info for split, (info, _) in closed.items()})
    stream = "\n".join([str(config.seq_len), *(f"{split} {digest}" for split, (_, digest) in closed.items())])
    return DataManifest(
        fingerprint=hashlib.sha256(stream.encode()).hexdigest(),
        source=config.source.path,
        licence=config.licence,
        seq_len=config.seq_len,
        vocab_size=vocab_size,
        dtype=dtype,
        special_tokens=special,
        splits={split: info for split, (info, _) in closed.items()},
    )


def _limited(pairs: Iterator[tuple[str, np.ndarray]], max_tokens: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """Whole documents until they hold `max_tokens`."""
    tokens = 0
    for split, ids in pairs:
        yield split, ids
        tokens += len(ids)
        if max_tokens is not None and tokens >= max_tokens:
            return


def _encoded(
    pairs: Iterator[tuple[str, Document]], where: str, tokenizer: Tokenizer | None, eos: int | None, vocab_size: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(split, token ids) of every document; text ends with eos, documents that came as ids stay as they are."""
    begun: list[np.ndarray] = []
    for lot in _lots(_parts(pairs, where, tokenizer)):
        texts = [content for _, content, _ in lot if isinstance(content, str)]
        encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False) if tokenizer is not None else ())
        for split, content, last in lot:
            if not isinstance(content, str):
                yield split, _checked(content, where, vocab_size, tokenizer)
                continue
            begun.append(np.array(next(encoded).ids, dtype=np.int64))
            if last:
                yield split, np.concatenate((*begun, np.array([eos])))
                begun.clear()


Part = tuple[str, Document, bool]
"""(split, part of a document, whether it is the document's last)."""


def _parts(pairs: Iterator[tuple[str, Document]], where: str, tokenizer: Tokenizer | None) -> Iterator[Part]:
    for split, document in pairs:
        if not isinstance(document, str):
            yield split, document, True
        elif tokenizer is None:
            raise UserError(f'"{where}" mixes text with token ids: set tokenizer.path')
        else:
            *begin, end = pieces(tokenizer, document)
            yield from ((split, piece, False) for piece in begin)
            yield split, end, True


def _lots(parts: Iterator[Part]) -> Iterator[list[Part]]:
    lot: list[Part] = []
    size = 0
    for part in parts:
        lot.append(part)
        size += len(part[1]) + 1
        if size >= _LOT:
            yield lot
            lot, size = [], 0
    yield lot


def _checked(ids: np.ndarray, where: str, vocab_size: int, tokenizer: Tokenizer | None) -> np.ndarray:
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        remedy = "set tokenizer.vocab_size" if tokenizer is None else "tokenizer.path is not the tokenizer that made it"
        raise UserError(f'"{where}" holds the token id {outside[0]}, outside a vocabulary of {vocab_size}: {remedy}')
    return ids


def _require_rows(config: PrepareConfig, splits: dict[str, SplitInfo]) -> None:
    for split, info in splits.items():
        if info.rows == 0:
            drawn = split == "validation" and config.validation_source is None
            remedy = "raise validation_fraction or change seed" if drawn else "lower seq_len or give it more text"
            raise UserError(
                f"the {split} split of {config.source.path} has {info.tokens} tokens in {info.documents} documents,"
                f" less than one row of {config.seq_len + 1}: {remedy}"
            )


def show(data: PackedData, row_ids: np.ndarray, seq_len: int | None = None) -> list[tuple[int, list[int], str]]:
    """(row id, token ids, text) of rows of the training split, as a run reads them that predicts `seq_len` tokens.

    The text is empty where there is no tokenizer.
    """
    rows = data.split("train")
    ids = rows.take(row_ids)[:, : (seq_len or rows.seq_len) + 1]
    tokenizer = load_tokenizer(data.tokenizer_path) if data.tokenizer_path is not None else None
    texts = tokenizer.decode_batch(ids.tolist(), skip_special_tokens=False) if tokenizer else [""] * len(ids)
    return [(int(row), row_tokens.tolist(), text) for row, row_tokens, text in zip(row_ids, ids, texts, strict=True)]
