"""The model card: README.md of a pushed or exported model, written from the run's manifests."""

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

Rows = list[tuple[str, Any]]
"""The rows of a table with two columns: name and value."""
_MARKUP = frozenset("&<>|[]`*\\")
"""Characters that Markdown or HTML may read as more than text."""


def model_readme(layout: RunLayout, repo: str, revisions: Mapping[int, str]) -> str:
    """Write the model card of a repository; `revisions` maps the steps in it to their tags.

    The card names no path, host or user of the machine that trained.

    Raises:
        DamagedError: run.json cannot be read.
    """
    newest = revisions[max(revisions)] if revisions else "main"
    prefix = newest.rpartition("-step")[0]
    use = f"Each revision is a Hugging Face model; {_loading(repo, newest)}"
    use += f'\nHow its weights developed, over all revisions: `pico-analyze run "hub:{repo}@{prefix}-step*"`\n'
    ending = [("Checkpoints", _revisions(revisions)), ("Use", use)]
    return _readme(
        layout, "with its checkpoints as revisions", newest_evaluations(layout), ending
    )


def exported_readme(layout: RunLayout, step: int, name: str, dtype: str) -> str:
    """Write the model card of a directory `name` that holds only the checkpoint of `step`.

    Evaluations are those of that step, with the weights in float32. Raises as `model_readme`.
    """
    contents = f"here as it was at step {step:,}, in {dtype}"
    use = f"In this directory's parent, {_loading(name)}"
    return _readme(layout, contents, evaluations_of(layout, step), [("Use", use)])


def _readme(
    layout: RunLayout,
    contents: str,
    evaluations: list[EvaluationManifest],
    ending: list[tuple[str, str]],
) -> str:
    manifest = codec.read_manifest(layout.manifest, RunManifest)
    config = read_yaml(layout.config)
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
        summary = _summary(manifest, contents)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        where = f"{layout.manifest} and {layout.config}"
        raise DamagedError(
            f"{where} do not say what a model card says ({in_one_line(error)})"
        ) from None
    parts = [f"---\n{strict_yaml.dump(front)}---\n", f"# {_text(manifest.name)}\n", summary]
    parts += [f"## {title}\n\n{body}\n" for title, body in sections]
    return "\n".join(parts)


def _summary(manifest: RunManifest, contents: str) -> str:
    parent = ""
    if manifest.parent:
        # Only the last part of the path: the card tells nothing about the machine.
        parent = f" It began from the weights of {_code(Path(manifest.parent).name)}."
    return (
        f"A decoder of {manifest.parameters['total']:,} parameters, trained with pico-train by the method"
        f" {_code(manifest.method)} for {manifest.total_steps:,} steps, {contents}.{parent}\n"
    )


class _Code(str):
    """Finished Markdown of a piece of code, which `_text` does not escape again."""


def _code(text: str) -> _Code:
    """Write a piece of code; backticks and bars, which would end it, become spaces."""
    harmless = one_line(text).replace("`", " ").replace("|", " ")
    return _Code(f"`{harmless}`")


def _text(value: Any) -> str:
    """Write a value as plain Markdown text.

    Values may come from others' data: they must not make links, images, HTML or table cells.
    """
    if isinstance(value, _Code):
        return str(value)
    text = one_line(str(value))
    # Markdown and HTML both read a character reference as text; a backslash is Markdown's.
    return "".join(f"&#{ord(char)};" if char in _MARKUP else char for char in text)


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    text = ""
    for line in [head, ("---",) * len(head), *rows]:
        cells = " | ".join(map(_text, line))
        text += f"| {cells} |\n"
    return text


def _geometry(manifest: RunManifest) -> Rows:
    counts = [
        (f"parameters, {name}", f"{count:,}") for name, count in manifest.parameters.items()
    ]
    return [*manifest.model.items(), *counts]


def _data(manifest: RunManifest, config: Mapping[str, Any]) -> Rows:
    """List the facts on the data; source and licence only if its directory is still the same."""
    rows = [
        ("fingerprint", _code(str(manifest.data["fingerprint"]))),
        ("order", manifest.data["order"]),
    ]
    try:
        data = codec.read_manifest(
            DataLayout(Path(config["data"]["path"])).manifest, DataManifest
        )
    except (DamagedError, OSError):
        return rows
    # Another data set may have been prepared at the same path since.
    if data.fingerprint != manifest.data["fingerprint"]:
        return rows
    # A local path tells about the machine; its last part does not.
    source = data.source if data.source.startswith("hub:") else Path(data.source).name
    return [
        ("source", source),
        ("licence", data.licence),
        *rows,
        ("vocabulary", data.vocab_size),
    ]


def _recipe(manifest: RunManifest, config: Mapping[str, Any]) -> Rows:
    """List the settings that make a repetition of the run possible."""
    method = config["method"]
    rows = _amounts(manifest, config["train"])
    rows += _prefixed("optimizer", config["optimizer"])
    rows += _prefixed("schedule", config["schedule"])
    rows.append(("method", method["name"]))
    rows += _prefixed("method", method["options"])
    rows += _prefixed("seed", manifest.seeds)
    return rows + _environment(manifest)


def _amounts(manifest: RunManifest, train: Mapping[str, Any]) -> Rows:
    progress = f"{manifest.step:,} of {manifest.total_steps:,} ({manifest.status})"
    rows = [("steps", progress), ("rows an update", train["batch_size"])]
    if train["seq_len"] is not None:
        rows.append(("tokens of a row", train["seq_len"]))
    return rows


def _prefixed(section: str, values: Mapping[str, Any]) -> Rows:
    return [(f"{section}, {key}", value) for key, value in values.items()]


def _environment(manifest: RunManifest) -> Rows:
    """List the precision, hardware and packages of the last session."""
    if not manifest.sessions:
        return []
    session = manifest.sessions[-1]
    # Sessions of earlier versions lack some of these.
    keys = ("precision", "device", "processes")
    rows = [(key, session[key]) for key in keys if key in session]
    packages = session.get("packages", {})
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    return [*rows, ("packages", versions)]


def _evaluations(evaluations: list[EvaluationManifest]) -> str:
    if not evaluations:
        return "None yet.\n"
    rows = []
    for result in evaluations:
        for name, measured in result.metrics.items():
            # A name with "/" is a part of its task, of which there may be dozens.
            if "/" not in name:
                value = f"{measured.value:.6g}"
                rows.append((result.task, name, value, measured.unit, measured.n))
    table = _table(("task", "metric", "value", "unit", "n"), rows)
    return f"Of step {evaluations[0].step}.\n\n{table}"


def _revisions(revisions: Mapping[int, str]) -> str:
    rows = [(f"{step:,}", _code(tag)) for step, tag in revisions.items()]
    return _table(("step", "revision"), rows)


def _loading(source: str, revision: str | None = None) -> str:
    # JSON quotes text as Python does, so a name with quotes cannot break the example.
    arguments = json.dumps(source)
    if revision is not None:
        arguments += f', revision="{revision}"'
    return f"""no code of ours is needed to load it:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({arguments})
tokenizer = AutoTokenizer.from_pretrained({arguments})
```
"""
