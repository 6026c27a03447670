"""A converted file of relora-pico passes the check and trains: its faults are what it asks for, and said."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pico_train import train
from pico_train.config import load
from pico_train.legacy.config import convert_config
from pico_train.log.metrics import read_metrics
from pico_train.run import RunConfig
from pico_train.run.estimate import estimate

ROOT = Path(__file__).resolve().parents[4]
OLD = {
    "checkpointing": {"run_name": "old-relora", "save_every_n_steps": 20},
    "model": {
        "d_model": 32,
        "activation_hidden_dim": 48,
        "n_layers": 2,
        "attention_n_heads": 4,
        "attention_n_kv_heads": 2,
        "vocab_size": 280,
        "max_seq_len": 32,
        "relora": {
            "target_modules": ["attention", "swiglu"],
            "reset_frequency": 16,
            "r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.1,
        },
    },
    "training": {
        "max_steps": 50,
        "fabric": {"num_devices": 1, "accelerator": "cpu", "precision": "32-true"},
        "optimization": {
            "lr": 0.01,
            "lr_warmup_steps": 8,
            "lr_scheduler": "relora_jagged_cosine",
            "min_lr_ratio": 0.1,
            "restart_warmup_steps": 3,
            "gradient_accumulation_steps": 2,
        },
    },
    "data": {"dataloader": {"batch_size": 8}},
}


def test_its_first_fifty_updates(tmp_path: Path, data_dir: Path) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump(OLD))
    text, remarks = convert_config(old)
    assert not [remark for remark in remarks if "no method" in remark]
    assert [remark for remark in remarks if "repeat faults of relora-pico" in remark]
    new = tmp_path / "new.yaml"
    new.write_text(text)
    overrides = [f"data.path={data_dir}", f"runs_dir={tmp_path}", "train.device=cpu", "evaluate.every=0", "log.every=1"]
    config = load(RunConfig, new, overrides)
    options = config.method.options
    assert (options["merge_scale"], options["init"], options["reset"]) == ("none", "zeros", "independent_pruning")
    said = "\n".join(estimate(config, str(new)))
    assert "optimizer (" in said
    assert train(config, quiet=True).status == "finished"
    rows = read_metrics(config.layout.metrics)
    assert rows[-1]["step"] == 50
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("name", ["relora-tiny", "relora-small"])
def test_the_configurations_that_are_shipped_have_every_option_checked(name: str, data_dir: Path) -> None:
    """On shapes: the factors are those of the published study."""
    from pico_train.run import build
    from pico_train.run.dry_run import phases

    config = load(RunConfig, ROOT / "pico-train/configs" / f"{name}.yaml", [f"data.path={data_dir}", "disk.check=off"])
    (phase,) = phases(build(config))
    width = config.model.hidden_size
    assert phase.parameters["model.layers.11.self_attn.q_proj.lora_A.weight"].shape == (16, width)
    assert len([p for p in phase.parameters if "lora_" in p]) == 2 * 7 * 12
