"""Preparing data: documents are tokenised, joined, cut into rows, and split by document.

`prepare` is the way in: it checks what is there already, gets a tokenizer (`_tokenizer`), draws the
split of each document (`_source`) and writes the rows (`_write`).
"""

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
from pico_train.data.sources import (
    Document,
    SourceConfig,
    documents,
    local_files,
    source_remarks,
)
from pico_train.data.tokenizer import (
    load_tokenizer,
    special_tokens,
    train_tokenizer,
    vocabulary_size,
)
from pico_train.seeds import derive


class TokenizerConfig(Section):
    """A tokenizer to train, or an existing one."""

    path: Path | None = None
    """tokenizer.json, or a directory that holds one; null trains a byte-level BPE.
    It is trained on the training documents."""
    vocab_size: int = Field(50_304, ge=1)
    """Vocabulary to train.
    With an existing tokenizer, the vocabulary of the models that will read the data."""
    sample_characters: int = Field(100_000_000, ge=1)
    """Characters of training documents that a tokenizer is trained on, from the first."""


class PrepareConfig(Section):
    """Options of preparing a data directory. Equal options and sources give equal bytes."""

    source: SourceConfig
    """Training documents, and validation documents unless `validation_source` is set."""
    out: Path
    """The data directory to make."""
    seq_len: int = Field(2048, ge=1)
    """Tokens that a row predicts; a row holds one more id."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The tokenizer of the rows."""
    validation_fraction: float = Field(0.01, ge=0, lt=1)
    """Share of documents that are held out for validation; 0 is off.
    They are drawn by a hash of `seed` and the document's number."""
    validation_source: SourceConfig | None = None
    """Separate source of validation documents, in place of a fraction."""
    max_tokens: int | None = Field(None, ge=1)
    """Tokens of the source after which to stop; null is all."""
    licence: str = "unknown"
    """Licence of the source, recorded with the data."""
    seed: int = 0
    """Seed that chooses the held-out documents."""


def prepare(config: PrepareConfig, say: Callable[[str], None] = lambda line: None) -> Path:
    """Make the data directory `config.out`, whole or not at all.

    A directory that was made with equal settings is kept.

    Raises:
        UserError: another data directory lies there, the source is unusable, or a split ends up
            without a row.
    """
    layout = DataLayout(config.out)
    settings = config.model_dump(mode="json", exclude={"out"})
    comparison = is_made(config.out, settings, _files_read(config))
    if comparison is not None:
        say(f"{config.out} is prepared already ({comparison}); delete it to prepare it again")
        return config.out
    for source in _sources(config):
        for remark in source_remarks(source):
            say(remark)
    # Recorded before reading, so that a file that changes meanwhile is noticed later.
    source_files = source_records(_files_read(config) or [])
    tokenizer = _tokenizer(config)
    with publish_data(config.out, say) as draft:
        manifest = _write(config, tokenizer, DataLayout(draft))
        manifest.settings, manifest.source_files = settings, source_files
        codec.seal(draft, manifest, layout.manifest.name)
    for split, info in manifest.splits.items():
        say(
            f"{split}: {info.documents} documents, {info.tokens:,} tokens, {info.rows:,} rows of {config.seq_len + 1}"
        )
    return config.out


def _sources(config: PrepareConfig) -> list[SourceConfig]:
    validation = config.validation_source
    return [config.source] if validation is None else [config.source, validation]


def _files_read(config: PrepareConfig) -> list[Path] | None:
    """Return the local files of sources and tokenizer; None if a source no longer exists."""
    files: list[Path] = []
    try:
        for source in _sources(config):
            files += local_files(source) or []
    except UserError:
        return None
    path = config.tokenizer.path
    if path is not None:
        files.append(path / TOKENIZER if path.is_dir() else path)
    return files


def _tokenizer(config: PrepareConfig) -> Tokenizer | None:
    """Return the tokenizer to encode with; None if the documents are token ids already."""
    if config.tokenizer.path is not None:
        return load_tokenizer(config.tokenizer.path)
    texts = (document for split, document in _source(config) if split == "train")
    # The first document tells whether the source is text or ids.
    first = next(texts, None)
    if first is None:
        raise UserError(f'no document of "{config.source.path}" is left for training')
    if not isinstance(first, str):
        return None
    sample = _sample(itertools.chain([first], texts), config.tokenizer.sample_characters)
    return train_tokenizer(sample, config.tokenizer.vocab_size)


def _sample(texts: Iterator[Document], budget: int) -> Iterator[str]:
    """Yield texts up to `budget` characters in total."""
    for text in texts:
        yield str(text)[:budget]
        budget -= len(text)
        if budget <= 0:
            return


def _source(config: PrepareConfig) -> Iterator[tuple[str, Document]]:
    """Yield (split, document) of every document of the source, in order."""
    fraction = config.validation_fraction if config.validation_source is None else 0.0
    count = 0
    for count, document in enumerate(documents(config.source), start=1):
        draw = derive(config.seed, "validation", count) / 2**63  # in [0, 1)
        yield ("validation" if draw < fraction else "train"), document
    if count == 1 and fraction > 0:
        raise UserError(
            f'"{config.source.path}" is a single document, of which none can be held out: set source.separator to part'
            " it, validation_source to another text, or validation_fraction=0"
        )


def _write(
    config: PrepareConfig, tokenizer: Tokenizer | None, layout: DataLayout
) -> DataManifest:
    """Write tokenizer and rows, and return the manifest that describes them."""
    vocab_size = config.tokenizer.vocab_size
    special: dict[str, int] = {}
    if tokenizer is not None:
        codec.write_text(layout.tokenizer, tokenizer.to_str(pretty=True))
        special = special_tokens(tokenizer, vocab_size)
        # A special token may lie above all ids of the tokenizer.
        vocab_size = max(vocabulary_size(tokenizer), *(i + 1 for i in special.values()))
    encoder = DocumentEncoder(tokenizer, special.get("eos"), vocab_size)
    dtype = smallest_dtype(vocab_size)
    splits, digests = _write_rows(config, encoder, layout, dtype)
    _require_rows(config, splits)
    return DataManifest(
        fingerprint=data_fingerprint(config.seq_len, digests),
        source=config.source.path,
        licence=config.licence,
        seq_len=config.seq_len,
        vocab_size=vocab_size,
        dtype=dtype,
        special_tokens=special,
        splits=splits,
        token_bytes=encoder.token_bytes,
    )


def _write_rows(
    config: PrepareConfig, encoder: DocumentEncoder, layout: DataLayout, dtype: str
) -> tuple[dict[str, SplitInfo], dict[str, str]]:
    """Pack the documents of all sources, and return counts and sha256 of each split."""
    names = ["train"]
    if config.validation_source is not None or config.validation_fraction > 0:
        names.append("validation")
    writers: dict[str, PackedWriter] = {}
    splits: dict[str, SplitInfo] = {}
    digests: dict[str, str] = {}
    with ExitStack() as files:
        for name in names:
            writer = PackedWriter(layout, name, config.seq_len, dtype)
            writers[name] = files.enter_context(writer)
        for split, ids in _encoded(config, encoder):
            writers[split].add(ids)
        for split, writer in writers.items():
            splits[split], digests[split] = writer.close()
    return splits, digests


def _encoded(
    config: PrepareConfig, encoder: DocumentEncoder
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (split, token ids) of every document of all sources."""
    encoded = encoder(_source(config), config.source.path)
    yield from _limited(encoded, config.max_tokens)
    validation = config.validation_source
    if validation is not None:
        held_out = (("validation", document) for document in documents(validation))
        yield from encoder(held_out, validation.path)


def _limited(
    pairs: Iterator[tuple[str, np.ndarray]], max_tokens: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield whole documents until they hold `max_tokens`."""
    tokens = 0
    for split, ids in pairs:
        yield split, ids
        tokens += len(ids)
        if max_tokens is not None and tokens >= max_tokens:
            return


def _require_rows(config: PrepareConfig, splits: dict[str, SplitInfo]) -> None:
    """Refuse a split that does not fill one row."""
    for split, info in splits.items():
        if info.rows > 0:
            continue
        is_drawn = split == "validation" and config.validation_source is None
        if is_drawn:
            remedy = "raise validation_fraction or change seed"
        else:
            remedy = "lower seq_len or give it more text"
        raise UserError(
            f"the {split} split of {config.source.path} has {info.tokens} tokens in {info.documents} documents,"
            f" less than one row of {config.seq_len + 1}: {remedy}"
        )


def show(
    data: PackedData, row_ids: np.ndarray, seq_len: int | None = None
) -> list[tuple[int, list[int], str]]:
    """Return (row id, token ids, text) of training rows, as a run reads them.

    `seq_len` is the number of tokens that the run predicts. The text is empty without a tokenizer.
    """
    rows = data.split("train")
    n_predicted = seq_len or rows.seq_len
    # A row begins with one id that is context only.
    ids = rows.take(row_ids)[:, : n_predicted + 1].tolist()
    texts = [""] * len(ids)
    path = data.tokenizer_path
    if path is not None:
        tokenizer = load_tokenizer(path)
        texts = tokenizer.decode_batch(ids, skip_special_tokens=False)
    return list(zip(row_ids.tolist(), ids, texts, strict=True))
