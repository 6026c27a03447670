"""Batches of the loader: what they hold, and that their size changes nothing."""

from __future__ import annotations

import weakref

import pandas as pd
import pytest
from pico_analyze import measure
from pico_analyze.components import ComponentKey, MeasuredUnit
from pico_analyze.engine import loader
from pico_analyze.engine.loader import Loader, ReferenceLoader, load_batch
from pico_analyze.engine.work import WorkItem
from pico_analyze.sources.run import Run

V_PROJ = "model.layers.0.self_attn.v_proj"


def test_small_batches_and_threads_change_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = measure(run)
    monkeypatch.setattr(loader, "_BATCH_BYTES", 0)
    pd.testing.assert_frame_equal(measure(run), before, rtol=1e-12)


def test_a_batch_holds_no_matrix_that_was_taken_out_of_it(run: Run) -> None:
    unit = MeasuredUnit(None, V_PROJ, (ComponentKey("self_attn.v_proj", 0, None, V_PROJ),))
    reader = Loader(WorkItem(run, unit, "activations", "val", tuple(run.steps)), spectral=False)
    steps = iter(run.steps)
    while batch := load_batch(steps, reader, ReferenceLoader(reader, counts_samples=False)):
        held = [weakref.ref(one) for inputs in batch.values() for one in inputs.values()]
        assert held
        for inputs in batch.values():
            inputs.clear()
        assert [one() for one in held] == [None] * len(held)
