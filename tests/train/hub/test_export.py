"""A checkpoint exported: a Hugging Face model of its own, rounded as asked, and nothing half made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from pico_contract import codec
from pico_contract.errors import DamagedError, UserError
from pico_contract.layout import MANIFEST, MODEL_WEIGHTS, RunLayout
from pico_contract.schema import CheckpointManifest
from pico_train.commands import open_checkpoint
from pico_train.hub.export import export_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

IDS = torch.tensor([[5, 60, 7, 8, 100, 3, 9, 11]])
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_opens_with_transformers_and_holds_the_weights_rounded(finished: RunLayout, dtype: str) -> None:
    out = export_checkpoint(finished.root, dtype=dtype)
    assert out == Path("tiny-step10" + {"fp32": "", "bf16": "-bf16", "fp16": "-fp16"}[dtype])
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == DTYPES[dtype]
    saved = codec.read_tensors(finished.checkpoint(10) / MODEL_WEIGHTS)
    loaded = model.state_dict()
    assert {name: tensor.shape for name, tensor in saved.items()} == {n: t.shape for n, t in loaded.items()}
    assert all(torch.equal(loaded[name], tensor.to(DTYPES[dtype])) for name, tensor in saved.items())
    stored = (out / MODEL_WEIGHTS).stat().st_size / (finished.checkpoint(10) / MODEL_WEIGHTS).stat().st_size
    assert stored == pytest.approx(DTYPES[dtype].itemsize / 4, abs=0.05)


def test_it_computes_what_the_checkpoint_does(finished: RunLayout) -> None:
    _, _, decoder = open_checkpoint(finished.root, 4)
    model = AutoModelForCausalLM.from_pretrained(export_checkpoint(finished.root, 4))
    with torch.no_grad():
        assert (model(IDS).logits - decoder(IDS)).abs().max() < 1e-5


def test_it_has_a_tokenizer_and_a_card_and_nothing_of_training(finished: RunLayout, tmp_path: Path) -> None:
    out = export_checkpoint(finished.root, out=tmp_path / "deep" / "model", dtype="bf16")
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    assert AutoTokenizer.from_pretrained(out).decode([5, 60]) == AutoTokenizer.from_pretrained(
        finished.checkpoint(10)
    ).decode([5, 60])
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "here as it was at step 10, in bfloat16" in card
    assert "Of step 10." in card
    assert "None yet." in (export_checkpoint(finished.root, 4) / "README.md").read_text(encoding="utf-8")
    assert 'from_pretrained("model")' in card
    assert "revision" not in card
    assert str(finished.root.parent) not in card


def test_what_exists_is_not_written_over(finished: RunLayout, tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="exists already; choose another --out"):
        export_checkpoint(finished.root, out=out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_a_run_holds_what_it_wrote_alone(finished: RunLayout) -> None:
    with pytest.raises(UserError, match="lies within the run"):
        export_checkpoint(finished.root, out=finished.checkpoint(99))
    assert not finished.checkpoint(99).exists()
    shutil.copytree(finished.root, "other")
    Path("link").symlink_to("other", target_is_directory=True)
    for out in ("other/checkpoints/step_00000099", "link/model", "link/../other/model"):
        with pytest.raises(UserError, match=r"lies within the run .*other"):
            export_checkpoint(finished.root, out=Path(out))


def test_what_appears_while_it_is_written_is_not_written_over(
    finished: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path("model").resolve()

    def appear(stage: str, path: Path) -> None:
        if stage == "before_rename" and path == out:
            out.mkdir()
            (out / "thesis.tex").write_text("mine")

    monkeypatch.setattr(codec, "on_stage", appear)
    with pytest.raises(UserError, match=r"^model exists already; choose another --out"):
        export_checkpoint(finished.root, out=Path("model"))
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("reads", ["read_manifest", "read_tensors"])
def test_a_checkpoint_that_the_run_removes_meanwhile(
    finished: RunLayout, monkeypatch: pytest.MonkeyPatch, reads: str
) -> None:
    read = getattr(codec, reads)

    def removed_first(path: Path, *given: object) -> object:
        if path.parent == finished.checkpoint(8):
            shutil.rmtree(finished.checkpoint(8))
        return read(path, *given)

    monkeypatch.setattr("pico_train.hub.export.intact_checkpoint", lambda run, step: (finished, 8))
    monkeypatch.setattr(f"pico_train.hub.export.codec.{reads}", removed_first)
    with pytest.raises(UserError, match="step_00000008 was removed while it was read, as the run's keep policy has it"):
        export_checkpoint(finished.root, 8)
    assert not Path("tiny-step8").exists()


def test_mistakes_and_damage_are_named(finished: RunLayout) -> None:
    with pytest.raises(UserError, match='--dtype is "int8"; it can be fp32, bf16, fp16'):
        export_checkpoint(finished.root, dtype="int8")
    with pytest.raises(UserError, match="has no checkpoint 7; it has: 0, 4, 8, 10"):
        export_checkpoint(finished.root, 7)
    weights = finished.checkpoint(8) / MODEL_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(DamagedError, match=r"model\.safetensors"):
        export_checkpoint(finished.root, 8)
    assert not Path("tiny-step8").exists()


def test_a_weight_beyond_half_precision_is_refused_by_name(finished: RunLayout) -> None:
    path = finished.checkpoint(10)
    weights = codec.read_tensors(path / MODEL_WEIGHTS)
    weights["model.norm.weight"][3] = 7e4
    with codec.publish(path) as draft:
        for file in path.iterdir():
            if file.is_file() and file.name != MANIFEST:
                (draft / file.name).write_bytes(file.read_bytes())
        codec.write_tensors(draft / MODEL_WEIGHTS, weights)
        codec.seal(draft, codec.read_manifest(path / MANIFEST, CheckpointManifest))
    with pytest.raises(UserError, match=r'"model\.norm\.weight" has values that are not finite in fp16'):
        export_checkpoint(finished.root, dtype="fp16")
    assert (
        json.loads((export_checkpoint(finished.root, dtype="bf16") / "config.json").read_text())["dtype"] == "bfloat16"
    )


def test_a_full_disk_leaves_nothing_half_made(finished: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pico_train.hub.export.codec.write_tensors", full)
    before = sorted(path.name for path in Path().iterdir())
    with pytest.raises(OSError, match="No space left"):
        export_checkpoint(finished.root)
    assert sorted(path.name for path in Path().iterdir()) == before
