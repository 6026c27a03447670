"""Results that other definitions gave are not read back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pico_analyze import measure
from pico_analyze.engine import cache
from pico_analyze.sources.run import Run
from pico_contract import codec


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    cache._code.cache_clear()
    yield
    cache._code.cache_clear()


@pytest.mark.parametrize("module", ["matrix.py", "inputs.py", "sample.py", "unbiased.py", "single.py", "power_law.py"])
def test_a_changed_definition_is_another_key(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    measure(run, ["per"], ["q_proj"], kinds=["weights"], cache=tmp_path)
    original = codec.sha256_file
    monkeypatch.setattr(codec, "sha256_file", lambda path: original(path)[:: -1 if path.name == module else 1])
    cache._code.cache_clear()
    read: list[str] = []
    tensor = Run.tensor
    monkeypatch.setattr(Run, "tensor", lambda self, *a, **k: (read.append(a[2]), tensor(self, *a, **k))[1])
    with pytest.warns(cache.CacheWarning, match="computed again"):
        measure(run, ["per"], ["q_proj"], kinds=["weights"], cache=tmp_path)
    assert len(read) == 3 * 2, "all of it was measured again"
    measure(run, ["per"], ["q_proj"], kinds=["weights"], cache=tmp_path)
    assert len(read) == 3 * 2


def test_all_code_that_a_number_depends_on_is_in_its_key() -> None:
    """Whatever measuring an item imports, but the package itself, which only says its version."""
    script = (
        "import sys, pico_analyze.engine.evaluate; print(*(m for m in sys.modules if m.startswith('pico_analyze.')))"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert {name.split(".")[1] for name in found.stdout.split()} <= {*cache._CODE}


def test_a_room_without_files_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the key would say nothing of that code, and its old results would be read for ever."""
    cache._code.cache_clear()
    monkeypatch.setattr(cache, "_CODE", (*cache._CODE, "a_room_that_moved"))
    with pytest.raises(RuntimeError, match="a_room_that_moved has no Python files"):
        cache._code()
