"""Series that people have, from a stand-in hub: `pico-analyze run hub:...`, then `report`, with the values checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pico_analyze.cli import main
from pico_analyze.sources import hub
from pico_analyze.sources import open as opening
from pico_contract import codec

from ...support.fake_hub import REPO, serving
from .test_published import RUN, history
from .test_published import tensors as pico_tensors

Tensors = dict[str, torch.Tensor]
Run = Callable[..., tuple[pd.DataFrame, str, str]]


@pytest.fixture
def analysed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`analysed(endpoint, name)` -> table, report and stderr of both commands."""
    monkeypatch.chdir(tmp_path)

    def call(endpoint: str, name: str) -> tuple[pd.DataFrame, str, str]:
        options = {"cache": tmp_path / "cache", "endpoint": endpoint}
        monkeypatch.setattr(opening, "open_hub", partial(hub.open_hub, **options))
        said = []
        for command in (["run", name, "metrics=[frobenius_norm,per]"], ["report", name]):
            monkeypatch.setattr(sys, "argv", ["pico-analyze", *command])
            with pytest.raises(SystemExit) as stopped:
                main()
            printed = capsys.readouterr()
            assert not stopped.value.code, printed.err
            said.append(printed.err)
        report = Path(printed.out.strip())
        return pd.read_parquet(report.with_name("table.parquet")), report.read_text(), said[0]

    return call


@contextmanager
def revisions(tmp_path: Path, named: dict[str, Tensors], config: dict[str, Any], **more: bytes) -> Iterator[str]:
    """The endpoint of a hub with these models, each with a pickle beside it, and a branch without a model."""
    files: dict[str, dict[str, bytes]] = {"main": {"README.md": b""}}
    for name, held in named.items():
        codec.save_tensors(tmp_path / "model.safetensors", held)
        content = (tmp_path / "model.safetensors").read_bytes()
        files[name] = {"model.safetensors": content, "pytorch_model.bin": b"\x80\x02", **more}
        files[name]["config.json"] = json.dumps(config).encode()
    with serving(files) as replica:
        yield replica.endpoint


def check(table: pd.DataFrame, named: dict[int, Tensors], tensor: Callable[[str], str]) -> None:
    """Every plain matrix has the norm of the tensor that it is."""
    norms = table[(table["metric"] == "frobenius_norm") & table["head"].isna() & (table["kind"] == "weights")]
    assert sorted(norms["step"].unique()) == sorted(named)
    for row in norms.to_dict("records"):
        expected = float(named[row["step"]][tensor(row["module"])].double().norm())
        assert row["value"] == pytest.approx(expected, rel=1e-12)
    assert set(table.loc[table["kind"] == "weights", "status"]) == {"ok"}


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> Tensors:
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}


def weight(module: str) -> str:
    return f"{module}.weight"


@pytest.mark.slow
def test_pico_decoder(analysed: Run, tmp_path: Path) -> None:
    with serving({"main": {}}, {RUN: history(tmp_path)}) as replica:
        table, report, _ = analysed(replica.endpoint, f"hub:{REPO}@{RUN}")
    assert RUN in report
    assert set(table["kind"]) == {"weights", "gradients", "activations"}
    assert sorted(table["step"].unique()) == [0, 1000, 2000]
    found = table[(table["metric"] == "frobenius_norm") & (table["component"] == "self_attn.v_proj")]
    for row in found.to_dict("records"):
        expected = pico_tensors(row["step"], row["kind"])["layers.0.attention.v_proj"].double().norm()
        assert row["value"] == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.slow
def test_pythia(analysed: Run, tmp_path: Path) -> None:
    """Fused projections, a pickle beside the weights, and two steps of the same bytes."""
    layer = "gpt_neox.layers.0."
    shapes = {
        f"{layer}attention.query_key_value.weight": (48, 16),
        f"{layer}attention.dense.weight": (16, 16),
        f"{layer}mlp.dense_h_to_4h.weight": (64, 16),
        f"{layer}mlp.dense_4h_to_h.weight": (16, 64),
    }
    steps = {0: drawn(shapes, 0), 512: drawn(shapes, 1), 143_000: drawn(shapes, 1)}
    config = {"model_type": "gpt_neox", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    with revisions(tmp_path, {f"step{step}": held for step, held in steps.items()}, config) as endpoint:
        table, report, said = analysed(endpoint, f"hub:{REPO}@step*")
    check(table, steps, weight)
    assert {weight(name) for name in table.loc[table["head"].isna(), "module"]} == set(shapes)
    assert "steps 512, 143000 hold the same files" in said
    assert "query_key_value" in report


@pytest.mark.slow
def test_olmo_2(analysed: Run, tmp_path: Path) -> None:
    """Tokens in the names of revisions, norms of queries and keys."""
    layer = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {f"{layer}self_attn.{name}_proj.weight": (16, 16) for name in "qkvo"}
    shapes |= {f"{layer}self_attn.{name}_norm.weight": (16,) for name in "qk"}
    shapes |= {f"{layer}mlp.{name}_proj.weight": (32, 16) for name in ("gate", "up")}
    steps = {1000: drawn(shapes, 0), 2000: drawn(shapes, 1)}
    names = {1000: "stage1-step1000-tokens5B", 2000: "stage1-step2000-tokens9B"}
    config = {"model_type": "olmo2", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    named = {names[step]: held for step, held in steps.items()}
    with revisions(tmp_path, named, config) as endpoint:
        table, report, _ = analysed(endpoint, f"hub:{REPO}")
    check(table, steps, weight)
    assert table.groupby("step")["tokens"].first().to_dict() == {1000: 5 * 10**9, 2000: 9 * 10**9}
    assert "ov_circuit" in report


@pytest.mark.slow
def test_t5(analysed: Run, tmp_path: Path) -> None:
    """An encoder and a decoder, whose layers are blocks."""
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(2):
        for side, layer in (
            ("encoder", "0.SelfAttention"),
            ("decoder", "0.SelfAttention"),
            ("decoder", "1.EncDecAttention"),
        ):
            shapes |= {f"{side}.block.{block}.layer.{layer}.{name}.weight": (16, 16) for name in "qkvo"}
    steps = {100: drawn(shapes, 0), 200: drawn(shapes, 1)}
    config = {"model_type": "t5", "d_model": 16, "num_heads": 2, "num_layers": 2}
    with revisions(tmp_path, {f"step_{step}": held for step, held in steps.items()}, config) as endpoint:
        table, _, _ = analysed(endpoint, f"hub:{REPO}@step_*")
    check(table, steps, weight)
    plain = table[table["head"].isna()]
    assert {weight(name) for name in plain["module"]} == set(shapes)
    assert set(plain["layer"]) == {0, 1}
