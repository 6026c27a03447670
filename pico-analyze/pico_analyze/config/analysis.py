"""What an analysis computes: defaults < YAML file < dotted overrides, unknown keys refused by
name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from glob import has_magic
from pathlib import Path
from typing import Annotated, Any, Literal

from pico_contract import strict_yaml
from pico_contract.config_errors import describe
from pico_contract.errors import UserError, did_you_mean, nearest, shorten
from pico_contract.layout import AnalysisLayout, RunLayout
from pico_contract.overrides import apply_overrides
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
)

from pico_analyze.config import pico_v1
from pico_analyze.engine.steps import REFERENCES


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are fixed once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class StepRange(Section):
    """Observed steps from `start` to `end`, both included, never beyond."""

    start: int = Field(0, ge=0)
    """First step."""
    end: int | None = Field(None, ge=0)
    """Last step; the run's last by default."""
    step: int | None = Field(None, ge=1)
    """Stride from `start`; every observed step by default."""
    among: list[int] | None = Field(None, min_length=1)
    """Only those of this list; unlike a list in place of the range, it may name steps that were not
    observed."""


class FiguresConfig(Section):
    """Which figures are drawn."""

    metrics: list[str] | None = None
    """Metrics drawn by layer and as heat maps; those of `metrics`, or a telling few, by default. []
    for none."""
    heads: bool = False
    """Whether circuits are drawn head by head as well as in the mean over heads."""
    formats: list[Literal["png", "svg", "pdf"]] = ["png"]
    """File formats."""


def _step_or_end(value: Any) -> Any:
    if value in ("first", "last", "previous") or (
        isinstance(value, int) and not isinstance(value, bool) and value >= 0
    ):
        return value
    raise ValueError(f'should be "first", "last", "previous" or a step (it is {_shown(value)})')


def _reference(value: Any) -> Any:
    if (
        value is None
        or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
        or value in REFERENCES
    ):
        return value
    near = "".join(f', did you mean "{name}"?' for name in nearest(str(value)[:100], REFERENCES))
    raise ValueError(
        f"should be one of {', '.join(REFERENCES)}, or a step (it is {_shown(value)}{near})"
    )


def _shown(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False))


def _shape_of_steps(value: Any) -> str:
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
    """As of an analysis, and so below."""
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
    """Globs over module names, and circuits (ov_circuit, *.0.self_attn.ov_circuit;
    docs/components.md); matrices of the layers, OV and low-rank updates by default."""
    steps: Steps | None = None
    """A list of steps, or start, end and step of a range; by default, for each kind, the steps that
    hold it."""
    kinds: Kinds | None = None
    """What is measured; all but updates (differences of weights) by default."""
    splits: Splits | None = None
    """Of which data; both by default."""
    reference: Reference = None
    """Step that similarities are taken to: first, last (the default), previous (each to the one
    before it), a number, or all (each to every earlier one); of another run same (the default),
    first, last or a number."""
    reference_run: Path | None = None
    """Another run, to whose steps similarities are taken."""
    across: Literal["layers"] | None = None
    """layers: similarities between the layers of each step instead of between steps."""
    null: Literal["permutation"] | None = None
    """permutation: what each similarity of samples is where the reference's probe rows are in any
    order."""
    null_draws: int = Field(99, ge=2)
    """Orders of the rows; each similarity is computed as many times more."""
    window: Annotated[str | int, BeforeValidator(_step_or_end)] = "previous"
    """Step from which updates are taken: first, previous or a number."""
    figures: FiguresConfig = FiguresConfig()
    """Which figures are drawn."""
    form_circuits: bool = False
    """Whether entries of circuits are measured too (gini, hoyer, ...); their matrices, D x D a
    head, are formed."""
    parts: list[Part] | None = Field(None, min_length=1)
    """Several measurements in one table, in place of metrics, components, kinds, splits and
    reference."""

    @field_validator("parts")
    @classmethod
    def _in_place_of_the_rest(
        cls, parts: list[Part] | None, info: ValidationInfo
    ) -> list[Part] | None:
        beside = [
            key for key in Part.model_fields if info.data.get(key) != cls.model_fields[key].default
        ]
        if parts and beside:
            raise ValueError(f'"{beside[0]}" belongs into each part and not beside them')
        return parts


def load(
    source: Path,
    overrides: Sequence[str] = (),
    run: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> AnalysisConfig:
    """The configuration in the YAML file `source`, or the default one of the run or series that
    `source` names.

    A file of pico-analyze 1.x is converted, and `say` gets a line for what is not quite what it
    was. `run` takes the place of the file's.

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
    apply_overrides(raw, overrides, "metrics=[per,gini]")
    if earlier and "run" not in raw:
        raise UserError(f"{source} is of pico-analyze 1.x and names no run: add --run RUN")
    return checked(raw, str(source), overrides)


def check_trust(source: Path, trust: bool) -> None:
    """Refuse the configuration of an earlier analysis, which came with its run, if it names code
    and `trust` is off.

    Raises:
        UserError: names the file and the code.
    """
    is_stored = source.name == AnalysisLayout(source.parent).config.name and (
        source.resolve().parent.parent.name == RunLayout(Path()).analysis("any").root.parent.name
    )
    if is_stored and source.is_file() and not trust:
        require_trust(_read(source), source, trust)


def checked(raw: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> AnalysisConfig:
    """Check `raw`; a UserError names `source`, or the override, and every key at fault.

    Checked as JSON in strict mode: text is not a number, true is not a number, and 10.0 is not an
    integer.
    """
    text = json.dumps(raw, default=str)
    try:
        return AnalysisConfig.model_validate_json(text, strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise UserError(
            describe(AnalysisConfig, json.loads(text), errors, source, overrides)
        ) from None


def _converted(raw: dict[str, Any], source: Path, say: Callable[[str], None]) -> dict[str, Any]:
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


def _read(path: Path) -> dict[str, Any]:
    if path.suffix in _MODEL_FILES:
        raise UserError(f"{path} is a file: name the folder that it lies in")
    if not path.exists():
        near = (
            [p.name for p in path.parent.iterdir() if _is_choice(p)] if path.parent.is_dir() else []
        )
        raise UserError(
            f"there is neither a run nor a configuration file {path}{did_you_mean(path.name, near)}"
        )
    return strict_yaml.read_mapping(path)


_MODEL_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")
"""Endings of what people name in place of the folder around it."""


def _is_choice(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml") or RunLayout(path).manifest.is_file()
