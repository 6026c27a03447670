"""`evaluate` and `generate` on a Hugging Face model directory that no run of ours has made."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_train.commands import evaluate_run, generate_text
from pico_train.commands.generation import Sampling
from pico_train.commands.models import evaluate_any, generate_any
from pico_train.config import validate
from pico_train.data.prepare import PrepareConfig, prepare
from pico_train.data.tokenizer import encode, load_tokenizer
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

GREEDY = Sampling(tokens=6, temperature=0.0)
SHORT = "the king falls"
TEXT = "the king and the queen, and a crown falls"


@pytest.fixture
def model(data_dir: Path, tmp_path: Path) -> Path:
    """A Llama that transformers wrote, with the tokenizer of the tiny data."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=280, max_position_embeddings=64, bos_token_id=None, eos_token_id=0, **sizes)
    folder = tmp_path / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((data_dir / "tokenizer.json").read_bytes())
    return folder


def stock(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def results(place: Path) -> dict[str, dict[str, Any]]:
    files = sorted(place.rglob("evaluations/step_00000000/*.json"))
    return {raw["task"]: raw for raw in (json.loads(path.read_text()) for path in files)}


def test_a_text_has_the_loss_that_transformers_gives(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    source = f"evaluate.text_perplexity.sources.a={tmp_path / 'text.txt'}"
    line = evaluate_any(model, None, None, [source, "device=cpu"])
    found = results(tmp_path / "llama-evaluation")["text_perplexity"]
    ids = torch.tensor([[0, *encode(load_tokenizer(model), TEXT)]])
    expected = stock(model)(ids, labels=ids).loss.item()
    assert found["metrics"]["loss"]["value"] == pytest.approx(expected, rel=1e-5)
    bits = expected * (ids.shape[1] - 1) / math.log(2) / len(TEXT.encode())
    assert found["metrics"]["bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-5)
    assert found["settings"]["start_token"] == "eos (id 0)"
    assert line.endswith(f"results in {tmp_path / 'llama-evaluation' / 'evaluations' / 'step_00000000'}")
    again = evaluate_any(model, None, None, [source, "device=cpu"])
    assert "(measured before under the same settings: text_perplexity; --again repeats)" in again


def test_another_model_under_the_name_is_measured_anew(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    overrides = [f"evaluate.text_perplexity.sources.a={tmp_path / 'text.txt'}", f"out={tmp_path / 'here'}"]
    first = evaluate_any(model, None, None, overrides)
    other = stock(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(3)
    other.save_pretrained(model)
    second = evaluate_any(model, None, None, overrides)
    assert "measured before" not in second
    assert first != second
    assert len(list((tmp_path / "here").rglob("*.json"))) == 2


def test_rows_need_the_tokenizer_of_the_model(model: Path, data_dir: Path, tmp_path: Path) -> None:
    line = evaluate_any(model, None, ["perplexity"], [f"data.path={data_dir}", "evaluate.perplexity.rows=4"])
    assert line.startswith("perplexity: loss 5.")
    (tmp_path / "text.txt").write_text("other words make other tokens " * 40)
    raw = {"source": str(tmp_path / "text.txt"), "out": str(tmp_path / "other"), "seq_len": 8}
    prepare(validate(PrepareConfig, raw | {"tokenizer": {"vocab_size": 275}, "validation_fraction": 0}, "test"))
    with pytest.raises(UserError, match=r"were made with another tokenizer than that of .*tokenizer\.path="):
        evaluate_any(model, None, ["perplexity"], [f"data.path={tmp_path / 'other'}"])


def test_a_prompt_goes_on_as_transformers_has_it(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    ids = torch.tensor([encode(tokenizer, TEXT).tolist()])
    made = stock(model).generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert generate_any(model, None, TEXT, GREEDY) == tokenizer.decode(made[0].tolist())


def with_template(path: Path, single: str) -> None:
    tokenizer = Tokenizer.from_file(str(path))
    special = [("<|endoftext|>", 0), ("<|pad|>", 1)]
    tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    tokenizer.save(str(path))


def test_the_template_of_its_tokenizer_is_a_models_own(model: Path) -> None:
    """Of a run it is not: its rows were made without."""
    with_template(model / "tokenizer.json", "<|pad|> $A")
    ids = torch.tensor([[1, *encode(load_tokenizer(model), TEXT)]])
    made = stock(model).generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert generate_any(model, None, TEXT, GREEDY) == load_tokenizer(model).decode(made[0].tolist())


def test_a_run_feeds_the_prompt_as_its_rows_were_made(finished: RunLayout) -> None:
    """Neither the template of its tokenizer nor the name of a special token brings in special tokens."""
    expected = generate_text(finished.root, SHORT, None, 6, 0.0, None, None, 0)
    with_template(finished.checkpoint(10) / "tokenizer.json", "<|pad|> $A <|endoftext|>")
    manifest = finished.checkpoint(10) / "manifest.json"
    raw = json.loads(manifest.read_text())
    del raw["files"]["tokenizer.json"]
    raw.pop("digest", None)
    manifest.write_text(json.dumps(raw))
    assert generate_text(finished.root, SHORT, None, 6, 0.0, None, None, 0) == expected
    named = generate_text(finished.root, "a <|endoftext|>", None, 6, 0.0, None, None, 0)
    assert named.startswith("a <|endoftext|>")


def test_a_checkpoint_in_a_run_is_that_step_of_the_run(finished: RunLayout) -> None:
    folder = finished.checkpoint(4)
    measured = evaluate_any(folder, None, ["perplexity"])
    assert measured == evaluate_run(finished.root, 4, ["perplexity"], again=True)
    assert [path.name for path in finished.checkpoints.iterdir() if "evaluation" in path.name] == []
    assert generate_any(folder, None, SHORT, GREEDY) == generate_any(finished.root, 4, SHORT, GREEDY)


@pytest.mark.parametrize(
    ("path", "step", "overrides", "sentence"),
    [
        ("llama", 3, [], r"--step is 3, but .*llama is one model: leave --step out"),
        ("nowhere", None, [], r"is not a run directory \(it has no run\.json\), nor a model directory"),
        ("llama", None, [], r"there is nothing to evaluate .*llama on: set data\.path, "),
        ("llama", None, ["evaluat.x=1"], r'unknown key "evaluat"'),
        ("llama", None, ["data.path=nowhere"], r"nowhere is not a data directory"),
    ],
)
def test_mistakes_are_one_sentence(
    model: Path, path: str, step: int | None, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        evaluate_any(model.parent / path, step, None, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "gpt2"}, 'only "llama" is supported'),
        ({"attention_bias": True}, "this decoder has no biases"),
        ({"intermediate_size": 64}, "has shape"),
    ],
)
def test_a_model_that_this_decoder_cannot_compute_is_refused(
    model: Path, changes: dict[str, object], sentence: str
) -> None:
    raw = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(raw | changes))
    with pytest.raises(UserError, match=sentence):
        generate_any(model, None, TEXT, GREEDY)


def test_a_folder_without_tokenizer_or_start_token(model: Path) -> None:
    raw = json.loads((model / "config.json").read_text())
    (model / "generation_config.json").unlink()
    (model / "config.json").write_text(json.dumps(raw | {"eos_token_id": None, "bos_token_id": None}))
    with pytest.raises(UserError, match=r"the prompt is empty, and no token is named that a text begins with"):
        generate_any(model, None, "", GREEDY)
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"there is no tokenizer at .*tokenizer\.json"):
        generate_any(model, None, TEXT, GREEDY)
