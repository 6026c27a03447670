"""docs/scale.md is what its program writes, and says what `pico-train check` says; activations are counted exactly."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pico_contract import codec
from pico_contract.layout import DataLayout
from pico_contract.schema import DataManifest, SplitInfo
from pico_train.config import load
from pico_train.data.shards import Listing, Shard
from pico_train.model.cost import activation_bytes
from pico_train.model.decoder import Decoder, DecoderConfig
from pico_train.model.execution import apply_compile_and_checkpointing
from pico_train.run import RunConfig
from pico_train.run.estimate import estimate

from ...support.autograd_memory import kept_bytes

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks/scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_its_program_writes(scale: ModuleType) -> None:
    assert scale.DOCUMENT.read_text(encoding="utf-8") == scale.page(), "run python benchmarks/scale.py"


@pytest.fixture
def said(scale: ModuleType, tmp_path: Path) -> dict[str, str]:
    """What the command says of decoder large, on a listing of shards as many and as long as the hub's."""
    layout = DataLayout(tmp_path)
    size = 20_480 * 2049 * scale.TOKEN_BYTES
    shards = tuple(Shard(f"{i:05d}.parquet", size, "0" * 64, 20_480) for i in range(10_000))
    listing = Listing(None, None, str(tmp_path), "input_ids", 2049, shards)
    codec.write_text(layout.shards("train"), listing.to_json())
    info = SplitInfo(rows=scale.ROWS, tokens=scale.ROWS * 2049, documents=scale.ROWS, dropped_tokens=0)
    manifest = DataManifest(
        fingerprint="f",
        source="paper",
        licence="none",
        seq_len=2048,
        vocab_size=50_304,
        dtype="uint16",
        special_tokens={},
        splits={"train": info},
    )
    codec.seal(tmp_path, manifest, layout.manifest.name)
    changes = [f"data.path={tmp_path}", "snapshot.every=0", "evaluate.every=0"]
    changes += [f"train.micro_batch_size={scale.PASS_ROWS}", "train.device=cpu"]
    config = load(RunConfig, scale.CONFIG, changes)
    return {line.split()[0]: line.partition(" ")[2].strip() for line in estimate(config, "large")}


def test_the_page_says_what_the_command_says(scale: ModuleType, said: dict[str, str]) -> None:
    found = scale.figures()
    page = scale.DOCUMENT.read_text(encoding="utf-8")
    assert said["parameters"].startswith(f"total {found['parameters']:,}, ")
    assert said["tokens"].startswith(f"{found['tokens']:,} in 200,000 steps of 1024 rows of 2048 (1.00 epochs)")
    assert said["arithmetic"].startswith(f"{found['operations']:.3e} ")
    assert said["time"] == (
        f"{found['hours_at_100']:,.1f} device-hours at 100 TFLOP/s, for {found['a_token']:,} operations a token"
    )
    assert said["memory"].startswith(f"{found['state'] / 1e9:.1f} GB for")
    assert said["activations"] == f"about {found['kept'] / 1e9:.1f} GB a pass of 16 rows in bf16"
    assert said["reads"] == f"{found['read'] / 1e9:.1f} GB of rows, {found['read'] / 200_000 / 1e6:.1f} MB a step"
    for text in (said["time"].split()[0], f"{found['parameters']:,}", said["arithmetic"].split()[0]):
        assert re.search(rf"(?<![\d,]){re.escape(text)}(?![\d,])", page), text


def kept(config: DecoderConfig, bf16: bool) -> int:
    """Bytes of the activations of 2 rows of 32 tokens, carried out as training does."""
    model = Decoder(config)
    model.init_weights(lambda name: torch.Generator().manual_seed(0))
    apply_compile_and_checkpointing(model, compiled=False, checkpointing=False)
    ids = torch.randint(0, config.vocab_size, (2, 33), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return kept_bytes(model, lambda: model(ids[:, :-1], ids[:, 1:]))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("width", "inner", "heads", "shared"), [(64, 128, 4, 2), (32, 144, 2, 2), (96, 64, 4, 1)])
def test_a_layer_keeps_what_is_counted(bf16: bool, width: int, inner: int, heads: int, shared: int) -> None:
    """To the byte: embedding and loss, which are not counted, are the same with two layers and with three."""

    def config(layers: int) -> DecoderConfig:
        return DecoderConfig(
            vocab_size=64,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=shared,
            max_position_embeddings=64,
        )

    counted = activation_bytes(config(3), 64, bf16) - activation_bytes(config(2), 64, bf16)
    assert kept(config(3), bf16) - kept(config(2), bf16) == counted
