"""The manifests as dataclasses: strict JSON out, checked JSON in, and the version policy.

A reader ignores keys that it does not know (a later minor version may have written them) and
refuses a major version above its own. A writer can only write the fields declared here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from pico_contract.errors import DamagedError, shorten
from pico_contract.files import is_plain_name
from pico_contract.typed_json import build, non_finite

FORMAT_VERSION = 1
_DIGEST = '"digest": "{}"'


@dataclass(frozen=True)
class FileEntry:
    """A file's size in bytes and sha256 in hex, from when its directory was sealed."""

    size: int
    sha256: str


@dataclass(kw_only=True)
class Manifest:
    """The keys of every manifest: the name of its format, its version, when it was created (UTC,
    ISO 8601).

    `digest` is the sha256 of the manifest's own text with the digest left empty; "" in those of
    earlier versions.
    """

    FORMAT: ClassVar[str] = ""
    format: str = ""
    format_version: int = FORMAT_VERSION
    created: str = ""
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        self.format = self.format or self.FORMAT

    def to_json(self) -> str:
        """Write indented JSON with the declared fields in their order and the digest of all of it.

        Raises:
            ValueError: a NaN or an infinity, which JSON cannot hold, by its key.
        """
        # The digest is of the text with an empty digest, which is then filled in.
        raw = dataclasses.asdict(self) | {"digest": ""}
        place = non_finite(raw, self.FORMAT)
        if place is not None:
            raise ValueError(place)
        text = json.dumps(raw, indent=2) + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()
        return text.replace(_DIGEST.format(""), _DIGEST.format(digest), 1)

    @classmethod
    def from_json(cls, text: str, path: Path) -> Self:
        """Parse and check; `path` is only for messages.

        Raises:
            DamagedError: not JSON, another format, a newer major version, a missing key, a wrong
                type or a number that is not finite, by name.
        """
        try:
            raw = json.loads(text)
        except (
            ValueError,
            RecursionError,
        ) as error:  # ValueError also for a number of thousands of digits
            raise DamagedError(f"{path} is not valid JSON ({error})") from None
        cls._check_format(raw, path)
        sentence = non_finite(raw, str(path))
        if sentence is not None:
            raise DamagedError(sentence)
        manifest = typing.cast(Self, build(cls, raw, str(path)))
        return cls.checked(manifest, path)

    @classmethod
    def _check_format(cls, raw: Any, path: Path) -> None:
        """Refuse another format and a newer version, before any key is looked at."""
        is_object = isinstance(raw, dict)
        stated = raw.get("format") if is_object else type(raw).__name__
        if not is_object or stated != cls.FORMAT:
            given = shorten(repr(stated))
            raise DamagedError(f'{path} should say format "{cls.FORMAT}" but says {given}')
        version = raw.get("format_version")
        is_number = type(version) is int
        if not is_number or not 1 <= version <= FORMAT_VERSION:
            given = shorten(repr(version))
            reads = f"this version reads 1 to {FORMAT_VERSION}: update pico-contract"
            raise DamagedError(f"{path} has format_version {given}; {reads}")

    @classmethod
    def checked(cls, manifest: Self, path: Path) -> Self:
        """Refuse values that no writer gives; `path` is only for messages."""
        return manifest


def has_own_digest(text: str, digest: str) -> bool:
    """Whether `digest`, the one that the manifest `text` states, is that of the text."""
    rest = text.replace(_DIGEST.format(digest), _DIGEST.format(""), 1)
    return hashlib.sha256(rest.encode("utf-8", "surrogatepass")).hexdigest() == digest


@dataclass(kw_only=True)
class RunManifest(Manifest):
    """run.json: what the run is and how far it came."""

    FORMAT: ClassVar[str] = "pico-run"
    name: str
    parent: str | None  # RUN@STEP or a model directory that the weights came from
    status: str  # running | stopped | failed | finished
    step: int  # newest step that was saved
    total_steps: int
    heartbeat: str  # UTC; a "running" run whose heartbeat is old has died
    model: dict[str, Any]  # geometry, Hugging Face names
    parameters: dict[str, int]  # counts: total and by component
    method: str
    seeds: dict[str, int]
    data: dict[str, Any]  # fingerprint, path, order
    sessions: list[
        dict[str, Any]
    ]  # one per start: host, processes, micro-batch, device, precision, packages, commit
    message: str = ""  # why it stopped or failed, in one sentence
    digests: dict[str, str] = field(
        default_factory=dict
    )  # file name -> sha256: config.yaml, probe.safetensors
    architecture: dict[str, Any] = field(
        default_factory=dict
    )  # name of the class, and of our own its source's sha256
    stock: bool = (
        True  # whether checkpoints are Hugging Face models that transformers opens and computes
    )

    @classmethod
    def checked(cls, manifest: Self, path: Path) -> Self:
        """Refuse steps that no run reaches, for which names and lists would be made."""
        for key in ("step", "total_steps"):
            step = getattr(manifest, key)
            if not 0 <= step < 1 << 63:
                raise DamagedError(
                    f"{path}: {key} should be from 0 to 2^63 but is {shorten(repr(step))}"
                )
        return manifest


@dataclass(kw_only=True)
class DirectoryManifest(Manifest):
    """The last file of a sealed directory: without it, or with sizes that differ, the directory
    does not exist."""

    files: dict[str, FileEntry] = field(default_factory=dict)

    @classmethod
    def checked(cls, manifest: Self, path: Path) -> Self:
        """Refuse file names that lead out of the directory."""
        _check_names(manifest.files, f"{path}: files")
        return manifest


@dataclass(kw_only=True)
class CheckpointManifest(DirectoryManifest):
    """checkpoints/step_t/manifest.json: theta_t as a Hugging Face model; `state/` has a manifest of
    its own."""

    FORMAT: ClassVar[str] = "pico-checkpoint"
    run: str
    step: int
    tokens: int  # consumed up to and including update t
    dtype: str = "float32"
    metrics: FileEntry | None = (
        None  # the beginning of metrics.jsonl that holds every row up to this step
    )


@dataclass(kw_only=True)
class StateManifest(DirectoryManifest):
    """checkpoints/step_t/state/manifest.json: what continuing bit for bit needs."""

    FORMAT: ClassVar[str] = "pico-state"
    step: int


@dataclass(kw_only=True)
class TensorSet:
    """One observed file of a snapshot.

    `tensors` maps the stored name (a parameter's for gradients, a module's for activations) to its
    shape; `objective`, `parameters` and `dropout` say what a gradient is of: which loss, with
    respect to what, dropout on. `terms` is how many terms of the loss each micro-batch has, where
    gradients are stacked by micro-batch.
    """

    file: str
    split: str  # train | val
    kind: str  # gradients | activations | microbatch_gradients
    dtype: str
    tensors: dict[str, list[int]]
    objective: str = ""
    parameters: str = ""
    dropout: bool = False
    terms: list[int] = field(default_factory=list)


@dataclass(kw_only=True)
class RowMap:
    """The token that each row of an activation tensor belongs to.

    Row r belongs to probe row r // len(positions), at position positions[r % len(positions)]. With
    rule "mean" there is one row per probe row, the mean over all positions, and `positions` is
    empty.
    """

    rule: str  # last | mean | all | every | sampled
    positions: list[int]
    probe_rows: int


@dataclass(kw_only=True)
class SnapshotManifest(DirectoryManifest):
    """snapshots/step_t/manifest.json: what was observed at theta_t, and what is absent and why."""

    FORMAT: ClassVar[str] = "pico-snapshot"
    run: str
    step: int
    weights: str  # "snapshot" (weights.safetensors here) or "checkpoint" (checkpoints/step_t/model.safetensors)
    modules: list[str]
    observed: list[TensorSet]
    row_map: RowMap | None = None
    absent: dict[str, str] = field(
        default_factory=dict
    )  # for example {"train.gradients": "final_step"}

    @classmethod
    def checked(cls, manifest: Self, path: Path) -> Self:
        """Refuse file names that lead out of the directory."""
        files = [observed.file for observed in manifest.observed]
        _check_names(files, f"{path}: observed")
        return super().checked(manifest, path)


@dataclass(kw_only=True)
class Measurement:
    """One number of an evaluation; `n` is how many of `unit`'s denominator it averages over
    (tokens, pairs, spans)."""

    value: float
    unit: str
    n: int


@dataclass(kw_only=True)
class EvaluationManifest(Manifest):
    """evaluations/step_t/<task>-<settings hash>.json: the results of one task on theta_t."""

    FORMAT: ClassVar[str] = "pico-evaluation"
    run: str
    step: int
    task: str
    settings: dict[str, Any]
    metrics: dict[str, Measurement]


@dataclass(kw_only=True)
class SplitInfo:
    """Counts of one split of a data directory; `dropped_tokens` did not fill a last row.

    `tail` holds their bytes in hex, as rows are stored, so that the fingerprint can be computed
    anew; `blocks` the sha256 of each block of 64 MiB of the rows. Earlier versions wrote neither.
    """

    rows: int
    tokens: int
    documents: int
    dropped_tokens: int
    tail: str | None = None
    blocks: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class SourceFile:
    """One file that data were made of, as it was then."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


@dataclass(kw_only=True)
class DataManifest(DirectoryManifest):
    """data.json: the packed rows of a data directory and where they came from."""

    FORMAT: ClassVar[str] = "pico-data"
    fingerprint: str  # sha256 over the token streams of all splits and the row length
    source: str
    licence: str
    seq_len: int  # tokens a row predicts; a row holds seq_len + 1 ids
    vocab_size: int
    dtype: str  # uint16 | uint32
    special_tokens: dict[str, int]  # eos, pad, mask where they exist
    splits: dict[str, SplitInfo]
    settings: dict[str, Any] = field(default_factory=dict)  # how it was prepared
    source_files: list[SourceFile] | None = (
        None  # of this machine; None where they were not recorded
    )
    token_bytes: str = ""  # "exact": ids stand for as many bytes as the text of each document has; "not exact"; unknown


def _check_names(names: Iterable[str], where: str) -> None:
    for name in names:
        if not is_plain_name(name):
            given = shorten(repr(name))
            raise DamagedError(
                f"{where} names {given}: only plain names of files in the same directory are allowed"
            )
