"""Who may import what: the dependency rules that keep each room's reason to change its own."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import re
import sys
from typing import Any

import pytest

Modules = list[Any]

HOMES = {
    "accelerate": {"pico_train.distributed", "pico_train.log.trackers"},
    "datasets": {"pico_train.data.sources"},
    "pyarrow": {
        "pico_train.data",
        "pico_analyze.table",
    },
    "tokenizers": {"pico_train.data"},
    "transformers": {"pico_train.model.hf"},
    "huggingface_hub": {"pico_analyze.sources", "pico_train.data", "pico_train.hub"},
    "safetensors": {"pico_contract.codec"},
    "pandas": {
        "pico_analyze.compare",
        "pico_analyze.engine",
        "pico_analyze.plot",
        "pico_analyze.report",
        "pico_analyze.table",
    },
    "scipy": {"pico_analyze.statistics"},
    "matplotlib": {"pico_analyze.plot"},
    "jinja2": {"pico_analyze.report"},
    "typer": {"pico_train.cli", "pico_analyze.cli"},
    "rich": {"pico_train.log", "pico_analyze.commands"},
    "yaml": {"pico_contract.strict_yaml"},
}
"""External package -> the only rooms that may import it, at module level or inside a function."""

FOREIGN = {
    "pico_analyze.sources.pico_v1": {"training_config.yaml", "checkpoints", "step_"},
    "pico_train.legacy.weights": {"pytorch_model.bin"},
    "pico_analyze.sources.formats": {"adapter_model.safetensors", "adapter_config.json"},
}
"""Reader of a foreign format -> the names that it knows of that format, some of which happen to be ours too."""

MAY_IMPORT = {
    "pico_contract": {"numpy", "torch", "safetensors", "yaml", "pico_contract"},
    "pico_train.model": {"torch", "transformers", "pico_train.model"},
    "pico_train.schedule": set(),
    "pico_train.seeds": {"torch"},
    "pico_train.config": {"pydantic", "pico_contract"},
    "pico_train.method": {
        "torch",
        "pico_train.config",
        "pico_train.method.base",
        "pico_train.method.relora",
        "pico_train.model",
        "pico_train.schedule",
        "pico_train.seeds",
        "pico_train.sharding",
        "pico_contract.names",
        "pico_contract.errors",
        "pydantic",
    },
    "pico_train.sharding": {"torch", "pico_contract.errors", "pico_train.model"},
    "pico_train.errors": {"pico_contract.errors"},
    "pico_train.optim": {"torch", "pydantic", "pico_contract", "pico_train.config", "pico_train.sharding"},
    "pico_train.launcher": {"pico_contract.errors"},
    "pico_train.distributed": {
        "torch",
        "accelerate",
        "pico_contract",
        "pico_train.errors",
        "pico_train.launcher",
        "pico_train.sharding",
    },
    "pico_analyze.metrics": {"torch", "pico_analyze.linalg", "pico_analyze.metrics", "pico_contract.errors"},
    "pico_analyze.statistics": {"numpy", "scipy", "pico_analyze.statistics"},
    "pico_analyze.linalg": {"torch", "numpy", "pico_analyze.linalg"},
}
"""Module or package -> everything beyond the standard library that it may import."""

MAY_NOT_IMPORT = {
    "pico_train.data": {"pico_train.model", "pico_train.optim", "pico_train.method", "pico_train.trainer"},
    "pico_train": {"pico_analyze"},
    "pico_analyze": {"pico_train", "accelerate", "datasets"},
    "pico_analyze.plot": {"torch"},
}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def offenders(modules: Modules, package: str, allowed: set[str]) -> list[str]:
    return sorted(
        f"{module.name} imports {name}"
        for module in modules
        if within(module.name, package)
        for name in module.imports()
        if name.split(".")[0] not in sys.stdlib_module_names and not any(within(name, known) for known in allowed)
    )


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(modules: Modules, package: str) -> None:
    assert any(within(module.name, package) for module in modules)
    assert offenders(modules, package, MAY_IMPORT[package]) == []


@pytest.mark.parametrize("package", MAY_NOT_IMPORT)
def test_a_room_does_not_import_what_it_may_not(modules: Modules, package: str) -> None:
    found = [
        f"{module.name} imports {name}"
        for module in modules
        if within(module.name, package)
        for name in module.imports()
        if any(within(name, forbidden) for forbidden in MAY_NOT_IMPORT[package])
    ]
    assert found == []


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_only_at_its_home(modules: Modules, library: str) -> None:
    users = {module.name for module in modules if any(within(name, library) for name in module.imports())}
    assert [user for user in sorted(users) if not any(within(user, home) for home in HOMES[library])] == []


def test_modules_import_each_other_without_a_cycle(modules: Modules) -> None:
    """At module level: an import inside a function waits until both are there."""
    names = {module.name for module in modules}
    graph = {}
    for module in modules:
        targets = {max((n for n in names if within(i, n)), key=len, default="") for i in module.imports(lazy=False)}
        graph[module.name] = targets - {"", module.name}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(names)


def test_the_finder_of_imports_sees_what_it_should(modules: Modules) -> None:
    """The rules above hold only as far as imports are found: also in functions, `try` and `with`, not for types."""
    source = (
        "import a.b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hidden\n"
        "try:\n    import c\nexcept ImportError:\n    import d\n"
        "class K:\n    def f(self):\n        with x:\n            from e import g\n"
    )
    module = dataclasses.replace(modules[0], tree=ast.parse(source))
    assert module.imports() == {"a.b", "typing.TYPE_CHECKING", "c", "d", "e.g"}
    assert module.imports(lazy=False) == {"a.b", "typing.TYPE_CHECKING", "c", "d"}


def test_no_star_import_no_relative_import_no_print(modules: Modules) -> None:
    found = []
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and (node.level or any(alias.name == "*" for alias in node.names)):
                found.append(f"{module.path}:{node.lineno}: {ast.unparse(node)}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                found.append(f"{module.path}:{node.lineno}: print")
    assert found == []


def test_no_file_is_called_utils_and_no_package_src(modules: Modules) -> None:
    vague = {"utils", "util", "helpers", "common", "misc", "src"}
    assert [module.name for module in modules if vague & set(module.name.split("."))] == []


def test_only_the_layout_knows_file_names_of_the_format(modules: Modules) -> None:
    """A name that two modules know cannot change. Suffixes alone are allowed: a reader of foreign files needs them."""
    file_name = re.compile(r"[\w/<>{}-]*\w\.(json|jsonl|yaml|safetensors|bin|lock|parquet|csv|html)\b")
    directories = {"checkpoints", "snapshots", "evaluations", "step_", "failure_", "logs", "analysis"}
    (layout,) = (module for module in modules if module.name == "pico_contract.layout")
    known = {text for text in layout.strings() if file_name.fullmatch(text)} | directories
    assert {"manifest.json", "run.json", "model.safetensors", "metrics.jsonl", "data.json"} <= known
    found = [
        f"{module.name}: {text!r}"
        for module in modules
        if module is not layout
        for text in module.strings()
        if (text.strip("/") in known or file_name.fullmatch(text)) and text not in FOREIGN.get(module.name, ())
    ]
    assert found == []
