"""The record of the code that measured an analysis, kept beside its table."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pico_contract.provenance import code_references, code_state, module_digests

from pico_analyze.config.analysis import AnalysisConfig


def code_record(config: AnalysisConfig) -> dict[str, Any]:
    """Record the code that measures: versions, the commit, changes to it, and the user's modules."""
    code = code_state("pico_analyze")
    return {
        "packages": {
            name: version(name) for name in ("pico-analyze", "torch", "numpy", "pandas")
        },
        "commit": code.commit,
        "dirty": code.dirty,
        "difference": code.difference,
        "modules": module_digests(code_references(config.model_dump(mode="json"))),
    }
