"""The model card: README.md of a run's repository, written from its manifests and config.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pico_contract import codec, strict_yaml
from pico_contract.errors import DamagedError, in_one_line
from pico_contract.layout import DataLayout, RunLayout
from pico_contract.schema import DataManifest, EvaluationManifest, RunManifest
from pico_contract.terminal import one_line

from pico_train.config import read_yaml
from pico_train.evaluate.results import evaluations_of, newest_evaluations


def model_readme(layout: RunLayout, repo: str, revisions: Mapping[int, str]) -> str:
    """Markdown with a YAML front matter; `revisions` maps the steps that the repository holds to
    their tags.

    It tells of no path, host or user of the machine that trained.

    Raises:
        DamagedError: run.json cannot be read.
    """
    newest = revisions[max(revisions)] if revisions else "main"
    prefix = newest.rpartition("-step")[0]
    use = f"Each revision is a Hugging Face model; {_loading(repo, newest)}"
    use += f'\nHow its weights developed, over all revisions: `pico-analyze run "hub:{repo}@{prefix}-step*"`\n'
    ending = [("Checkpoints", _revisions(revisions)), ("Use", use)]
    return _readme(layout, "with its checkpoints as revisions", newest_evaluations(layout), ending)


def exported_readme(layout: RunLayout, step: int, name: str, dtype: str) -> str:
    """The same for a directory `name` that holds the checkpoint of `step` alone, in `dtype`; errors
    as `model_readme`.

    Evaluations are those of that step, of the weights in float32.
    """
    held = f"here as it was at step {step:,}, in {dtype}"
    use = f"In this directory's parent, {_loading(name)}"
    return _readme(layout, held, evaluations_of(layout, step), [("Use", use)])


def _readme(
    layout: RunLayout,
    held: str,
    evaluations: list[EvaluationManifest],
    ending: list[tuple[str, str]],
) -> str:
    manifest, config = codec.read_manifest(layout.manifest, RunManifest), read_yaml(layout.config)
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pico-train", "llama", "learning-dynamics"],
    }
    try:
        sections = [
            ("Model", _table(("", ""), _geometry(manifest))),
            ("Data", _table(("", ""), _data(manifest, config))),
            ("Recipe", _table(("", ""), _recipe(manifest, config))),
            ("Evaluations", _evaluations(evaluations)),
            *ending,
        ]
        summary = _summary(manifest, held)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        where = f"{layout.manifest} and {layout.config}"
        raise DamagedError(
            f"{where} do not say what a model card says ({in_one_line(error)})"
        ) from None
    parts = [f"---\n{strict_yaml.dump(front)}---\n", f"# {_text(manifest.name)}\n", summary]
    return "\n".join([*parts, *(f"## {title}\n\n{body}\n" for title, body in sections)])


def _summary(manifest: RunManifest, held: str) -> str:
    parent = (
        f" It began from the weights of {_code(Path(manifest.parent).name)}."
        if manifest.parent
        else ""
    )
    return (
        f"A decoder of {manifest.parameters['total']:,} parameters, trained with pico-train by the method"
        f" {_code(manifest.method)} for {manifest.total_steps:,} steps, {held}.{parent}\n"
    )


class _Code(str):
    """Markdown that is written already: a piece of code, which nothing in it can end."""


def _code(text: str) -> _Code:
    return _Code(f"`{one_line(text).replace('`', ' ').replace('|', ' ')}`")


def _text(value: Any) -> str:
    """A value as Markdown that shows it: without links, images, HTML, code or the end of a table's
    cell."""
    if isinstance(value, _Code):
        return str(value)
    return "".join(f"&#{ord(one)};" if one in "&<>|[]`*\\" else one for one in one_line(str(value)))


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_text, line))} |" for line in lines) + "\n"


def _geometry(manifest: RunManifest) -> list[tuple[str, Any]]:
    counts = [(f"parameters, {name}", f"{count:,}") for name, count in manifest.parameters.items()]
    return [*manifest.model.items(), *counts]


def _data(manifest: RunManifest, config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The source and licence are those of the data directory, where it is still there and the
    same."""
    rows = [
        ("fingerprint", _code(str(manifest.data["fingerprint"]))),
        ("order", manifest.data["order"]),
    ]
    try:
        data = codec.read_manifest(DataLayout(Path(config["data"]["path"])).manifest, DataManifest)
    except (DamagedError, OSError):
        return rows
    if data.fingerprint != manifest.data["fingerprint"]:
        return rows
    source = data.source if data.source.startswith("hub:") else Path(data.source).name
    return [("source", source), ("licence", data.licence), *rows, ("vocabulary", data.vocab_size)]


def _recipe(manifest: RunManifest, config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    train, method = config["train"], config["method"]
    rows: list[tuple[str, Any]] = [
        ("steps", f"{manifest.step:,} of {manifest.total_steps:,} ({manifest.status})"),
        ("rows an update", train["batch_size"]),
        *([("tokens of a row", train["seq_len"])] if train["seq_len"] is not None else []),
        *((f"optimizer, {key}", value) for key, value in config["optimizer"].items()),
        *((f"schedule, {key}", value) for key, value in config["schedule"].items()),
        ("method", method["name"]),
        *((f"method, {key}", value) for key, value in method["options"].items()),
        *((f"seed, {key}", value) for key, value in manifest.seeds.items()),
    ]
    if manifest.sessions:
        last = manifest.sessions[-1]
        rows += [(key, last[key]) for key in ("precision", "device", "processes") if key in last]
        rows += [("packages", ", ".join(f"{k} {v}" for k, v in last.get("packages", {}).items()))]
    return rows


def _evaluations(found: list[EvaluationManifest]) -> str:
    if not found:
        return "None yet.\n"
    rows = [
        (result.task, name, f"{measured.value:.6g}", measured.unit, measured.n)
        for result in found
        for name, measured in result.metrics.items()
        if "/" not in name
    ]
    return f"Of step {found[0].step}.\n\n{_table(('task', 'metric', 'value', 'unit', 'n'), rows)}"


def _revisions(revisions: Mapping[int, str]) -> str:
    return _table(
        ("step", "revision"), [(f"{step:,}", _code(tag)) for step, tag in revisions.items()]
    )


def _loading(source: str, revision: str | None = None) -> str:
    at = json.dumps(source) if revision is None else f'{json.dumps(source)}, revision="{revision}"'
    return f"""no code of ours is needed to load it:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({at})
tokenizer = AutoTokenizer.from_pretrained({at})
```
"""
