"""What an analysis computes: defaults < YAML file < dotted overrides, unknown keys refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from glob import has_magic
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pico_contract.errors import UserError, did_you_mean, nearest
from pico_contract.layout import RunLayout
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

from pico_analyze import legacy_config
from pico_analyze.selection import REFERENCES


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class StepRange(Section):
    """Observed steps from `start` to `end`, both included, never beyond."""

    start: int = Field(0, ge=0)
    """First step."""
    end: int | None = Field(None, ge=0)
    """Last step; the run's last by default."""
    step: int | None = Field(None, ge=1)
    """Stride from `start`; every observed step by default."""
    among: list[int] | None = Field(None, min_length=1)
    """Only those of this list; unlike a list in place of the range, it may name steps that were not observed."""


class FiguresConfig(Section):
    """Which figures are drawn."""

    metrics: list[str] | None = None
    """Metrics drawn by layer and as heat maps; those of `metrics`, or a telling few, by default. [] for none."""
    heads: bool = False
    """Whether circuits are drawn head by head as well as in the mean over heads."""
    formats: list[Literal["png", "svg", "pdf"]] = ["png"]
    """File formats."""


def _step_or_end(value: Any) -> Any:
    if value in ("first", "last", "previous") or (
        isinstance(value, int) and not isinstance(value, bool) and value >= 0
    ):
        return value
    raise ValueError(f'should be "first", "last", "previous" or a step (it is {value!r})')


def _reference(value: Any) -> Any:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0) or value in REFERENCES:
        return value
    near = "".join(f', did you mean "{name}"?' for name in nearest(str(value), REFERENCES))
    raise ValueError(f"should be one of {', '.join(REFERENCES)}, or a step (it is {value!r}{near})")


def _shape_of_steps(value: Any) -> str:
    return "range" if isinstance(value, dict | StepRange) else "list"


Steps = Annotated[
    Annotated[StepRange, Tag("range")] | Annotated[list[int], Tag("list")], Discriminator(_shape_of_steps)
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
    """Run directory (also of pico-train 1.x); folders of models in safetensors, a glob, a list; hub:NAME@step*."""
    name: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The analysis is written to analysis/<name>/ in the run, in place of an earlier one of that name."""
    out: Path | None = None
    """Directory for analysis/<name>/; the run itself, for sources of other programs ./analysis/<source>/<name>/."""
    disk_gib: float = Field(20.0, gt=0)
    """GiB that files downloaded from the hub may take."""
    metrics: list[str] | None = None
    """Names that `pico-analyze metrics` lists, or module:attribute of a function of your own; all by default."""
    components: list[str] | None = None
    """Globs over module names, and circuits (ov_circuit, *.0.self_attn.ov_circuit; docs/components.md);
    matrices of the layers, OV and low-rank updates by default."""
    steps: Steps | None = None
    """A list of steps, or start, end and step of a range; by default, for each kind, the steps that hold it."""
    kinds: Kinds | None = None
    """What is measured; all but updates (differences of weights) by default."""
    splits: Splits | None = None
    """Of which data; both by default."""
    reference: Reference = None
    """Step that similarities are taken to: first, last (the default), previous (each to the one before it), a number,
    or all (each to every earlier one); of another run same (the default), first, last or a number."""
    reference_run: Path | None = None
    """Another run, to whose steps similarities are taken."""
    across: Literal["layers"] | None = None
    """layers: similarities between the layers of each step instead of between steps."""
    null: Literal["permutation"] | None = None
    """permutation: what each similarity of samples is where the reference's rows are in any order."""
    null_draws: int = Field(99, ge=2)
    """Orders of the rows; each similarity is computed as many times more."""
    window: Annotated[str | int, BeforeValidator(_step_or_end)] = "previous"
    """Step from which updates are taken: first, previous or a number."""
    figures: FiguresConfig = FiguresConfig()
    """Which figures are drawn."""
    form_circuits: bool = False
    """Whether entries of circuits are measured too (gini, hoyer, ...); their matrices, D x D a head, are formed."""
    parts: list[Part] | None = Field(None, min_length=1)
    """Several measurements in one table, in place of metrics, components, kinds, splits and reference."""

    @field_validator("parts")
    @classmethod
    def _in_place_of_the_rest(cls, parts: list[Part] | None, info: ValidationInfo) -> list[Part] | None:
        beside = [key for key in Part.model_fields if info.data.get(key) != cls.model_fields[key].default]
        if parts and beside:
            raise ValueError(f'"{beside[0]}" belongs into each part and not beside them')
        return parts


def load(
    source: Path, overrides: Sequence[str] = (), run: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> AnalysisConfig:
    """The configuration in the YAML file `source`, or the default one of the run or series that `source` names.

    A file of pico-analyze 1.x is converted, and `say` gets a line for what is not quite what it was. `run` takes the
    place of the file's.

    Raises:
        UserError: no such file or run, not YAML, an unknown key, a wrong type; one sentence that names file and key.
    """
    if run is not None and _names_a_source(source):
        raise UserError(f"{source} is a run already: leave out --run {run}")
    raw: dict[str, Any] = {"run": str(source)} if _names_a_source(source) else _read(source)
    earlier = legacy_config.is_legacy(raw)
    if earlier:
        raw = _converted(raw, source, say)
    if run is not None:
        raw["run"] = str(run)
    for override in overrides:
        _apply(raw, override)
    if earlier and "run" not in raw:
        raise UserError(f"{source} is of pico-analyze 1.x and names no run: add --run RUN")
    return checked(raw, str(source), overrides)


def checked(raw: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> AnalysisConfig:
    """`raw` as a configuration; a UserError names `source`, or the override, and the key."""
    try:
        return AnalysisConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(_sentence(error, source, overrides)) from None


def _converted(raw: dict[str, Any], source: Path, say: Callable[[str], None]) -> dict[str, Any]:
    try:
        return legacy_config.converted(raw, str(source), source.stem, lambda sentence: say(f"note: {sentence}"))
    except ValidationError as error:
        raise UserError(_sentence(error, str(source), (), legacy_config.SECTIONS)) from None


def to_yaml(config: AnalysisConfig) -> str:
    """The resolved configuration; feeding it back repeats the analysis."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _names_a_source(source: Path) -> bool:
    return source.is_dir() or str(source).startswith("hub:") or (has_magic(str(source)) and not source.is_file())


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = [p.name for p in path.parent.iterdir() if _is_choice(p)] if path.parent.is_dir() else []
        raise UserError(f"there is neither a run nor a configuration file {path}{did_you_mean(path.name, near)}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} should hold a mapping of keys to values but holds {type(raw).__name__}")
    return raw


def _is_choice(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml") or RunLayout(path).manifest.is_file()


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not (key and equals):
        raise UserError(f'"{override}" is not an override: write key=value, for example metrics=[per,gini]')
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError:
        raise UserError(f'the value of the override "{override}" is not valid YAML') from None
    *parents, leaf = key.split(".")
    section = raw
    for part in parents:
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise UserError(f'the override "{override}" goes below "{part}", which is a value and not a section')
    section[leaf] = value


def _sentence(
    error: ValidationError, source: str, overrides: Sequence[str], sections: Mapping[str, type[BaseModel]] | None = None
) -> str:
    first = error.errors(include_url=False)[0]
    path = [str(part) for place, part in enumerate(first["loc"]) if (place, part) not in _TAGS]
    key = ".".join(path)
    if any(f"{key}.".startswith(f"{override.partition('=')[0]}.") for override in overrides):
        source = "the command line"
    if first["type"] == "extra_forbidden":
        parents = ["", *(part for part in path[:-1] if not part.isdigit())]
        section = (sections or _SECTIONS)[parents[-1]]
        return f'{source}: unknown key "{key}"{did_you_mean(path[-1], section.model_fields)}'
    if first["type"] == "missing":
        return f'{source}: the key "{key}" is missing'
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" else f" (it is {first['input']!r})"
    return f"{source}: {key}: {message[:1].lower()}{message[1:]}{given}"


_TAGS = ((1, "range"), (1, "list"))  # pydantic names the member of the union `steps` after the key
_SECTIONS: Mapping[str, type[BaseModel]] = {
    "": AnalysisConfig,
    "steps": StepRange,
    "figures": FiguresConfig,
    "parts": Part,
}


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which it would drop the first, and knows `null` as a key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f'the key "{twice[0]}" is given twice', node.start_mark)
        found = super().construct_mapping(node, deep)
        if None in found:
            found["null"] = found.pop(None)  # what YAML makes of the key `null`, which is one of ours
        return found
