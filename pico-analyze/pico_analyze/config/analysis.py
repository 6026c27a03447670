"""The configuration of an analysis: defaults < YAML file < dotted overrides, without unknown keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from glob import has_magic
from pathlib import Path
from typing import Annotated, Any, Literal

from pico_contract import strict_yaml
from pico_contract.config_errors import describe
from pico_contract.config_types import read_booleans
from pico_contract.errors import UserError, did_you_mean, nearest, shorten
from pico_contract.layout import AnalysisLayout, RunLayout
from pico_contract.overrides import apply_overrides
from pico_contract.renames import ANALYSIS
from pico_contract.trust import require_trust
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pico_analyze.config import pico_v1
from pico_analyze.engine.steps import REFERENCES


class Section(BaseModel):
    """The base of every section: it refuses unknown keys, and its values are fixed once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class StepRange(Section):
    """The observed steps from `start` to `end`, both included."""

    start: int = Field(0, ge=0)
    """First step."""
    end: int | None = Field(None, ge=0)
    """Last step; the run's last by default."""
    step: int | None = Field(None, ge=1)
    """Stride from `start`; every observed step by default."""
    among: list[int] | None = Field(None, min_length=1)
    """Only the steps of this list; unlike a list in place of the range, it may name steps that were
    not observed."""


class FiguresConfig(Section):
    """The choice of figures and their format."""

    metrics: list[str] | None = None
    """Metrics drawn by layer and as heat maps; those of `metrics`, or a telling few, by default. []
    for none."""
    heads: bool = False
    """Whether circuits are drawn head by head as well as in the mean over heads."""
    formats: list[Literal["png", "svg", "pdf"]] = ["png"]
    """File formats."""


def _is_step(value: Any) -> bool:
    # True and False are integers in Python, and no steps.
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _step_or_end(value: Any) -> Any:
    """Refuse a value of `window` that is neither a step nor a name of one."""
    if value in ("first", "last", "previous") or _is_step(value):
        return value
    raise ValueError(f'should be "first", "last", "previous" or a step (it is {_shown(value)})')


def _reference(value: Any) -> Any:
    """Refuse a reference that is neither a step nor one of `REFERENCES`."""
    if value is None or _is_step(value) or value in REFERENCES:
        return value
    near = "".join(
        f', did you mean "{name}"?' for name in nearest(str(value)[:100], REFERENCES)
    )
    names = ", ".join(REFERENCES)
    raise ValueError(f"should be one of {names}, or a step (it is {_shown(value)}{near})")


def _shown(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False))


def _shape_of_steps(value: Any) -> str:
    """Choose between the two forms of `steps`, so that errors speak of the one that was meant."""
    return "range" if isinstance(value, dict | StepRange) else "list"


Steps = Annotated[
    Annotated[StepRange, Tag("range")] | Annotated[list[int], Tag("list")],
    Discriminator(_shape_of_steps),
]


Kinds = list[Literal["weights", "gradients", "activations", "microbatch_gradients", "updates"]]
Splits = list[Literal["train", "val"]]
Reference = Annotated[str | int | None, BeforeValidator(_reference)]


class Part(Section):
    """One of several measurements that make one table; its keys are those of an analysis."""

    metrics: list[str] | None = None
    """The same as the key `metrics` of an analysis; so are the keys below."""
    components: list[str] | None = None
    kinds: Kinds | None = None
    splits: Splits | None = None
    reference: Reference = None


class AnalysisConfig(Section):
    """One analysis of one run."""

    run: Path | list[Path]
    """Run directory (also of pico-train 1.x); folders of models in safetensors, a glob, a list;
    hub:NAME@step*."""
    name: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """The analysis is written to analysis/<name>/ in the run, in place of an earlier one of that
    name."""
    out: Path | None = None
    """Directory for analysis/<name>/; the run itself, for sources of other programs
    ./analysis/<source>/<name>/."""
    disk_gib: float = Field(20.0, gt=0)
    """GiB that files downloaded from the hub may take."""
    metrics: list[str] | None = None
    """Names that `pico-analyze metrics` lists, or module:attribute of a function of your own; all
    by default."""
    components: list[str] | None = None
    """Globs over the names of modules and circuits (ov_circuit, *.0.self_attn.ov_circuit;
    docs/components.md); matrices of the layers, OV and low-rank updates by default."""
    steps: Steps | None = None
    """A list of steps, or start, end and step of a range; by default, for each kind, the steps that
    hold it."""
    kinds: Kinds | None = None
    """Kinds of tensors to measure; all but updates (differences of weights) by default."""
    splits: Splits | None = None
    """Splits of the data to measure; both by default."""
    reference: Reference = None
    """Step that similarities are taken to: first, last (the default), previous (each to the one
    before it), a number, or all (each to every earlier one); with `reference_run` same (the
    default), first, last or a number."""
    reference_run: Path | None = None
    """Another run; similarities are taken to its steps."""
    across: Literal["layers"] | None = None
    """layers: similarities between the layers of each step instead of between steps."""
    null: Literal["permutation"] | None = None
    """permutation: also compute each similarity of samples with the reference's probe rows in
    random orders."""
    null_draws: int = Field(99, ge=2)
    """Number of random orders; each similarity is computed as many times more."""
    window: Annotated[str | int, BeforeValidator(_step_or_end)] = "previous"
    """Step from which updates are taken: first, previous or a number."""
    figures: FiguresConfig = FiguresConfig()
    """The choice of figures and their format."""
    dense_circuits: bool = False
    """Whether entries of circuits are measured too (gini, hoyer, ...); this computes their
    matrices, D x D a head."""
    parts: list[Part] | None = Field(None, min_length=1)
    """Several measurements in one table, in place of metrics, components, kinds, splits and
    reference."""

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, raw: Any) -> Any:
        return ANALYSIS.current(raw, "AnalysisConfig") if isinstance(raw, Mapping) else raw

    @field_validator("parts")
    @classmethod
    def _in_place_of_the_rest(
        cls, parts: list[Part] | None, info: ValidationInfo
    ) -> list[Part] | None:
        """Refuse a key beside `parts` that each part has itself."""
        for key in Part.model_fields if parts else ():
            if info.data.get(key) != cls.model_fields[key].default:
                raise ValueError(f'"{key}" belongs into each part and not beside them')
        return parts


def load(
    source: Path,
    overrides: Sequence[str] = (),
    run: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> AnalysisConfig:
    """Read the YAML file `source`, or make the default configuration of the run that it names.

    A file of pico-analyze 1.x is converted, and `say` gets a line for each difference. `run`
    replaces the run that the file names.

    Raises:
        UserError: no such file or run, not YAML, an unknown key, a wrong type; one sentence that
            names file and key.
    """
    if run is not None and _names_a_source(source):
        raise UserError(f"{source} is a run already: leave out --run {run}")
    raw: dict[str, Any] = {"run": str(source)} if _names_a_source(source) else _read(source)
    earlier = pico_v1.is_legacy(raw)
    if earlier:
        raw = _converted(raw, source, say)
    if run is not None:
        raw["run"] = str(run)
    old_names = [*ANALYSIS.old_names(raw), *ANALYSIS.old_keys(overrides)]
    if old_names:
        say(f"note: {'; '.join(dict.fromkeys(old_names))}")
    raw, overrides = ANALYSIS.current(raw, str(source)), ANALYSIS.current_overrides(overrides)
    apply_overrides(raw, overrides, "metrics=[per,gini]")
    if earlier and "run" not in raw:
        raise UserError(f"{source} is of pico-analyze 1.x and names no run: add --run RUN")
    return checked(raw, str(source), overrides)


def check_trust(source: Path, trust: bool) -> None:
    """Refuse the stored configuration of an earlier analysis if it names code and `trust` is off.

    Such a file came with its run, so that the user may never have read it.

    Raises:
        UserError: names the file and the code.
    """
    analyses = RunLayout(Path()).analysis("any").root.parent
    has_stored_name = source.name == AnalysisLayout(source.parent).config.name
    is_stored = has_stored_name and source.resolve().parent.parent.name == analyses.name
    if is_stored and source.is_file() and not trust:
        require_trust(_read(source), source, trust)


def checked(
    raw: Mapping[str, Any], source: str, overrides: Sequence[str] = ()
) -> AnalysisConfig:
    """Check `raw` as JSON in strict mode; old names of keys are accepted.

    Text is not a number, true is not a number, and 10.0 is not an integer.

    Raises:
        UserError: names `source`, or the override, and every key at fault.
    """
    raw = ANALYSIS.current(raw, source)
    text = json.dumps(read_booleans(AnalysisConfig, raw), default=str)
    try:
        return AnalysisConfig.model_validate_json(text, strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise UserError(
            describe(AnalysisConfig, json.loads(text), errors, source, overrides)
        ) from None


def _converted(raw: dict[str, Any], source: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Convert a file of pico-analyze 1.x; an error names the file and the keys that it has."""
    try:
        return pico_v1.converted(
            raw, str(source), source.stem, lambda sentence: say(f"note: {sentence}")
        )
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise UserError(describe(pico_v1.LegacyConfig, raw, errors, str(source))) from None


def to_yaml(config: AnalysisConfig) -> str:
    """Write the resolved configuration; feeding it back repeats the analysis."""
    return strict_yaml.dump(config.model_dump(mode="json"))


def _names_a_source(source: Path) -> bool:
    return (
        source.is_dir()
        or str(source).startswith("hub:")
        or (has_magic(str(source)) and not source.is_file())
    )


_MODEL_FILES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".onnx",
    ".h5",
    ".msgpack",
)
"""Endings of files that people name in place of the folder around them."""


def _read(path: Path) -> dict[str, Any]:
    """Read a YAML file; an error names the nearest run or configuration."""
    if path.suffix in _MODEL_FILES:
        raise UserError(f"{path} is a file: name the folder that it lies in")
    if not path.exists():
        suggestion = did_you_mean(path.name, _choices(path.parent))
        raise UserError(f"there is neither a run nor a configuration file {path}{suggestion}")
    return strict_yaml.read_mapping(path)


def _choices(folder: Path) -> list[str]:
    """List the names of runs and YAML files in `folder`."""
    if not folder.is_dir():
        return []
    return [path.name for path in folder.iterdir() if _is_choice(path)]


def _is_choice(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml") or RunLayout(path).manifest.is_file()
