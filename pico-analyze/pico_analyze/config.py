"""What an analysis computes: defaults < YAML file < dotted overrides, unknown keys refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from glob import has_magic
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pico_contract.errors import UserError, did_you_mean
from pico_contract.layout import RunLayout
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError


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


def _shape_of_steps(value: Any) -> str:
    return "range" if isinstance(value, dict | StepRange) else "list"


Steps = Annotated[
    Annotated[StepRange, Tag("range")] | Annotated[list[int], Tag("list")], Discriminator(_shape_of_steps)
]


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
    """Globs over module names, and circuits (ov_circuit); all projections and circuits by default."""
    steps: Steps | None = None
    """A list of steps, or start, end and step of a range; by default, for each kind, the steps that hold it."""
    kinds: list[Literal["weights", "gradients", "activations", "microbatch_gradients", "updates"]] | None = None
    """What is measured; all but updates (differences of weights) by default."""
    splits: list[Literal["train", "val"]] | None = None
    """Of which data; both by default."""
    reference: Annotated[str | int, BeforeValidator(_step_or_end)] = "last"
    """Step that similarities are taken to: first, last, previous (each to the one before it) or a number."""
    window: Annotated[str | int, BeforeValidator(_step_or_end)] = "previous"
    """Step from which updates are taken: first, previous or a number."""
    figures: FiguresConfig = FiguresConfig()
    """Which figures are drawn."""


def load(source: Path, overrides: Sequence[str] = ()) -> AnalysisConfig:
    """The configuration in the YAML file `source`, or the default one of the run or series that `source` names.

    Raises:
        UserError: no such file or run, not YAML, an unknown key, a wrong type; one sentence that names file and key.
    """
    raw: dict[str, Any] = {"run": str(source)} if _names_a_source(source) else _read(source)
    for override in overrides:
        _apply(raw, override)
    return checked(raw, str(source), overrides)


def checked(raw: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> AnalysisConfig:
    """`raw` as a configuration; a UserError names `source`, or the override, and the key."""
    try:
        return AnalysisConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(_sentence(error, source, overrides)) from None


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


def _sentence(error: ValidationError, source: str, overrides: Sequence[str]) -> str:
    first = error.errors(include_url=False)[0]
    path = [str(part) for place, part in enumerate(first["loc"]) if (place, part) not in _TAGS]
    key = ".".join(path)
    if any(f"{key}.".startswith(f"{override.partition('=')[0]}.") for override in overrides):
        source = "the command line"
    if first["type"] == "extra_forbidden":
        section = _SECTIONS[path[0]] if path[1:] else AnalysisConfig
        return f'{source}: unknown key "{key}"{did_you_mean(path[-1], section.model_fields)}'
    if first["type"] == "missing":
        return f'{source}: the key "{key}" is missing'
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" else f" (it is {first['input']!r})"
    return f"{source}: {key}: {message[:1].lower()}{message[1:]}{given}"


_TAGS = ((1, "range"), (1, "list"))  # pydantic names the member of the union `steps` after the key
_SECTIONS: Mapping[str, type[Section]] = {"steps": StepRange, "figures": FiguresConfig}


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which it would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f'the key "{twice[0]}" is given twice', node.start_mark)
        return super().construct_mapping(node, deep)
