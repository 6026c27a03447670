"""Work items go to any executor of concurrent.futures, in this process or another."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pico_analyze import measure, open_run
from pico_analyze.engine.damage import DamagedWarning
from pico_analyze.engine.execute import pool
from pico_analyze.sources.run import Run
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout, observed_file

SMALL: dict[str, Any] = {"components": ["v_proj", "ov_circuit"], "reference": "previous"}


class ThroughPickle(Executor):
    """Sends calls and results the way a cluster does, and does them here at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        call, given = pickle.loads(pickle.dumps((fn, args)))
        future: Future[Any] = Future()
        try:
            future.set_result(pickle.loads(pickle.dumps(call(*given, **kwargs))))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.slow
def test_other_processes_give_the_same_table(run: Run, tmp_path: Path, processes: ProcessPoolExecutor) -> None:
    expected = measure(run, **SMALL)
    pd.testing.assert_frame_equal(measure(run, **SMALL, executor=processes), expected, rtol=1e-12)
    kept = measure(run, **SMALL, executor=processes, cache=tmp_path / "cache")
    pd.testing.assert_frame_equal(kept, expected, rtol=1e-12)
    pd.testing.assert_frame_equal(measure(run, **SMALL, cache=tmp_path / "cache"), kept, check_exact=True)


def test_a_pool_of_the_callers_is_left_open(run: Run) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = measure(run, ["per"], **SMALL, executor=pool)
        pd.testing.assert_frame_equal(measure(run, ["per"], **SMALL, executor=pool), first, check_exact=True)


def test_what_travels_is_small_and_opens_files_by_their_path(run: Run, layout: RunLayout) -> None:
    """The source read files before it travels; no tensor and no open file goes with it."""
    run.tensor(0, "weights", "model.layers.0.self_attn.v_proj")
    there = pickle.dumps(run)
    assert len(there) < 50_000
    again = pickle.loads(there)
    expected = run.tensor(1, "weights", "model.layers.0.mlp.up_proj")
    assert torch.equal(again.tensor(1, "weights", "model.layers.0.mlp.up_proj"), expected)
    assert again.layout == layout


def test_threads_of_the_process_are_as_before(run: Run) -> None:
    before = torch.get_num_threads()
    measure(run, ["per"], **SMALL, executor=ThroughPickle())
    assert torch.get_num_threads() == before


def test_files_that_a_worker_cannot_read_are_reported_here(layout: RunLayout) -> None:
    file = layout.snapshot(1) / observed_file("val", "activations")
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.warns(DamagedWarning, match="step 1 ") as caught:
        frame = measure(open_run(layout.root), ["per"], **SMALL, executor=ThroughPickle())
    assert len(caught) == 1
    assert set(frame.loc[frame["status"] == "damaged", "step"]) == {1}


def breaks(x: torch.Tensor) -> float:
    raise ZeroDivisionError("in a metric")


def test_an_error_in_a_worker_ends_the_analysis(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='the metric "breaks" failed: ZeroDivisionError: in a metric'):
        measure(run, [breaks], **SMALL)
    with ThreadPoolExecutor(1) as pool, pytest.raises(UserError, match="breaks"):
        measure(run, ["max_abs", breaks], components=["v_proj"], executor=pool, cache=tmp_path)
    assert list(tmp_path.glob("*.jsonl")) == []


def test_pool_computes_with_one_thread_each_and_restores_the_number() -> None:
    before = torch.get_num_threads()
    with pool() as executor:
        found = [executor.submit(lambda: (torch.get_num_threads(), threading.current_thread().name)) for _ in range(8)]
        results = [future.result() for future in found]
        assert torch.get_num_threads() == 1
    assert {threads for threads, _ in results} == {1}
    assert len({name for _, name in results}) <= before
    assert torch.get_num_threads() == before
