"""Every status, metric and circuit has words."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
from pico_analyze.components.circuits import CIRCUITS
from pico_analyze.metrics import METRICS
from pico_analyze.report import glossary
from pico_analyze.report import run as report
from pico_analyze.report.glossary import STATUSES


def test_every_status_that_a_metric_gives_has_words() -> None:
    package = Path(report.__file__).parents[1]
    given = {
        status
        for path in (*package.glob("metrics/*.py"), package / "engine" / "evaluate.py")
        for status in re.findall(r'Outcome\([^)"]*(?:\([^)]*\))?[^)"]*"(\w+)"', path.read_text(encoding="utf-8"))
    } - {"ok"}
    assert {"zero", "rank_deficient", "missing", "non_finite"} <= given
    assert given <= set(STATUSES)


def test_every_metric_is_defined() -> None:
    frame = pd.DataFrame({"metric": list(METRICS), "unit": None})
    assert len(report.definitions(frame)) == len(METRICS)
    for _, unit, text, says in report.definitions(frame):
        assert unit
        assert "Source: " in text
        assert says


def test_every_circuit_has_words_and_plain_modules_need_none() -> None:
    assert all(glossary.component(name) for name in CIRCUITS)
    assert glossary.component("self_attn.q_proj.lora_update") == glossary.component("lora_update")
    assert glossary.component("self_attn.q_proj") == glossary.component("self_attn.q_proj.lora_A") == ""
