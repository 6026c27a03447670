"""When layers are compiled, and what is said where they cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pico_contract.errors import UserError
from pico_train import train
from pico_train.run import RunConfig
from pico_train.run.compile import compile_errors_as_user_errors, compiles

Tiny = Callable[..., RunConfig]


of_the_compiler = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning", "ignore:dynamo_pgo:UserWarning"
)
"""What torch says to itself while it compiles."""


def test_auto_compiles_on_cuda_alone() -> None:
    found = {kind: compiles("auto", torch.device(kind)) for kind in ("cpu", "cuda", "mps")}
    assert found == {"cpu": False, "cuda": True, "mps": False}
    assert compiles("on", torch.device("cpu"))
    assert not compiles("off", torch.device("cuda"))
    assert not compiles("auto", torch.device("cuda"), "full")
    with pytest.raises(UserError, match=r"train\.compile is on, which train\.sharding=full"):
        compiles("on", torch.device("cpu"), "full")


def test_a_machine_without_a_compiler_says_so() -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    with (
        pytest.raises(UserError, match=r"train\.compile: .* C\+\+ compiler .*set train\.compile=off"),
        compile_errors_as_user_errors(),
    ):
        raise InvalidCxxCompiler
    with pytest.raises(ValueError, match="another matter"), compile_errors_as_user_errors():
        raise ValueError("another matter")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    import torch._inductor.config as settings

    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with settings.patch({"force_disable_caches": True, "cpp.cxx": (None, str(tmp_path / "no-such-compiler"))}):
        yield
    torch.compiler.reset()


@pytest.mark.slow
@of_the_compiler
def test_a_run_that_cannot_compile_ends_with_one_sentence(tiny: Tiny, no_compiler: None) -> None:
    with pytest.raises(UserError, match=r"train\.compile: the model could not be compiled here"):
        train(tiny(**{"train.compile": "on"}), quiet=True)
