"""Results that other definitions gave are not read back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pico_analyze import cache, measure
from pico_analyze.sources.run import Run
from pico_contract import codec


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    cache._code.cache_clear()
    yield
    cache._code.cache_clear()


@pytest.mark.parametrize("module", ["linalg.py", "inputs.py", "sample.py", "unbiased.py", "single.py", "power_law.py"])
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
    measure(run, ["per"], ["q_proj"], kinds=["weights"], cache=tmp_path)
    assert len(read) == 3 * 2, "all of it was measured again"
    measure(run, ["per"], ["q_proj"], kinds=["weights"], cache=tmp_path)
    assert len(read) == 3 * 2
