"""Documents to packed rows: tokenise, concatenate, cut, split by document."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from pico_contract import codec
from pico_contract.data_directory import data_fingerprint
from pico_contract.errors import UserError
from pico_contract.layout import TOKENIZER, DataLayout
from pico_contract.schema import DataManifest, SplitInfo
from pydantic import Field
from tokenizers import Tokenizer

from pico_train.config import Section
from pico_train.data.encoding import DocumentEncoder
from pico_train.data.packed import PackedData, PackedWriter, smallest_dtype
from pico_train.data.publish import is_made, publish_data, source_records
from pico_train.data.sources import Document, SourceConfig, documents, local_files, source_remarks
from pico_train.data.tokenizer import (
    load_tokenizer,
    special_tokens,
    train_tokenizer,
    vocabulary_size,
)
from pico_train.seeds import derive


class TokenizerConfig(Section):
    """A tokenizer of our own, or an existing one."""

    path: Path | None = None
    """tokenizer.json or a directory that holds one; null trains a byte-level BPE on the training
    documents."""
    vocab_size: int = Field(50_304, ge=1)
    """Vocabulary to train; with an existing tokenizer, the vocabulary of the models that will read
    the data."""
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
    """Share of documents, drawn by a hash of (seed, number of the document), that are held out; 0
    is off."""
    validation_source: SourceConfig | None = None
    """Held-out documents from a source of their own, instead of a fraction."""
    max_tokens: int | None = Field(None, ge=1)
    """Stop after this many tokens of the source; null is all."""
    licence: str = "unknown"
    """Licence of the source, recorded with the data."""
    seed: int = 0
    """Chooses the held-out documents."""


def prepare(config: PrepareConfig, say: Callable[[str], None] = lambda line: None) -> Path:
    """Make the data directory `config.out`, whole or not at all; one that was made with equal
    settings is kept.

    Raises:
        UserError: another data directory lies there, the source is unusable, or a split ends up
            without a row.
    """
    layout, settings = DataLayout(config.out), config.model_dump(mode="json", exclude={"out"})
    compared = is_made(config.out, settings, _files_read(config))
    if compared is not None:
        say(f"{config.out} is prepared already ({compared}); delete it to prepare it again")
        return config.out
    for source in filter(None, (config.source, config.validation_source)):
        for remark in source_remarks(source):
            say(remark)
    read = source_records(_files_read(config) or [])
    tokenizer = _tokenizer(config)
    with publish_data(config.out, say) as draft:
        manifest = _write(config, tokenizer, DataLayout(draft))
        manifest.settings, manifest.source_files = settings, read
        codec.seal(draft, manifest, layout.manifest.name)
    for split, info in manifest.splits.items():
        say(
            f"{split}: {info.documents} documents, {info.tokens:,} tokens, {info.rows:,} rows of {config.seq_len + 1}"
        )
    return config.out


def _files_read(config: PrepareConfig) -> list[Path] | None:
    """Files of this machine that sources and tokenizer are read from; None where a source is no
    longer there."""
    found: list[Path] = []
    try:
        for source in filter(None, (config.source, config.validation_source)):
            found += local_files(source) or []
    except UserError:
        return None
    path = config.tokenizer.path
    if path is not None:
        found.append(path / TOKENIZER if path.is_dir() else path)
    return found


def _tokenizer(config: PrepareConfig) -> Tokenizer | None:
    """The tokenizer to encode with; None where the source is tokenised already and none is
    given."""
    if config.tokenizer.path is not None:
        return load_tokenizer(config.tokenizer.path)
    texts = (document for split, document in _source(config) if split == "train")
    first = next(texts, None)
    if first is None:
        raise UserError(f'no document of "{config.source.path}" is left for training')
    if not isinstance(first, str):
        return None
    return train_tokenizer(
        _sample(itertools.chain([first], texts), config), config.tokenizer.vocab_size
    )


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
    encoder = DocumentEncoder(tokenizer, special.get("eos"), vocab_size)
    dtype = smallest_dtype(vocab_size)
    wants_validation = config.validation_source is not None or config.validation_fraction > 0
    splits = ("train", "validation") if wants_validation else ("train",)
    with ExitStack() as files:
        writers = {
            s: files.enter_context(PackedWriter(layout, s, config.seq_len, dtype)) for s in splits
        }
        for split, ids in _limited(encoder(_source(config), config.source.path), config.max_tokens):
            writers[split].add(ids)
        if config.validation_source is not None:
            held_out = (
                ("validation", document) for document in documents(config.validation_source)
            )
            for split, ids in encoder(held_out, config.validation_source.path):
                writers[split].add(ids)
        closed = {split: writer.close() for split, writer in writers.items()}
    _require_rows(config, {split: info for split, (info, _) in closed.items()})
    return DataManifest(
        fingerprint=data_fingerprint(
            config.seq_len, {split: digest for split, (_, digest) in closed.items()}
        ),
        source=config.source.path,
        licence=config.licence,
        seq_len=config.seq_len,
        vocab_size=vocab_size,
        dtype=dtype,
        special_tokens=special,
        splits={split: info for split, (info, _) in closed.items()},
        token_bytes=encoder.token_bytes,
    )


def _limited(
    pairs: Iterator[tuple[str, np.ndarray]], max_tokens: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Whole documents until they hold `max_tokens`."""
    tokens = 0
    for split, ids in pairs:
        yield split, ids
        tokens += len(ids)
        if max_tokens is not None and tokens >= max_tokens:
            return


def _require_rows(config: PrepareConfig, splits: dict[str, SplitInfo]) -> None:
    for split, info in splits.items():
        if info.rows == 0:
            drawn = split == "validation" and config.validation_source is None
            remedy = (
                "raise validation_fraction or change seed"
                if drawn
                else "lower seq_len or give it more text"
            )
            raise UserError(
                f"the {split} split of {config.source.path} has {info.tokens} tokens in {info.documents} documents,"
                f" less than one row of {config.seq_len + 1}: {remedy}"
            )


def show(
    data: PackedData, row_ids: np.ndarray, seq_len: int | None = None
) -> list[tuple[int, list[int], str]]:
    """(row id, token ids, text) of rows of the training split, as a run reads them that predicts
    `seq_len` tokens.

    The text is empty where there is no tokenizer.
    """
    rows = data.split("train")
    ids = rows.take(row_ids)[:, : (seq_len or rows.seq_len) + 1]
    tokenizer = load_tokenizer(data.tokenizer_path) if data.tokenizer_path is not None else None
    texts = (
        tokenizer.decode_batch(ids.tolist(), skip_special_tokens=False)
        if tokenizer
        else [""] * len(ids)
    )
    return [
        (int(row), row_tokens.tolist(), text)
        for row, row_tokens, text in zip(row_ids, ids, texts, strict=True)
    ]
