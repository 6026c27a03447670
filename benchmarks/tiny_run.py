"""The smallest run with every kind of file, made in seconds for the fuzzing programs beside this one."""

from __future__ import annotations

import random
from pathlib import Path

from pico_contract.layout import RunLayout
from pico_train import train
from pico_train.config import validate
from pico_train.data.prepare import PrepareConfig, prepare
from pico_train.run import RunConfig

WORDS = ("the", "a", "king", "queen", "crown", "sword", "speaks", "weeps", "falls", "rises", "love", "war")


def make_run(root: Path, steps: int = 2, name: str = "tiny") -> RunLayout:
    """Prepare words below `root` and train `steps` updates on them; checkpoints and snapshots at every second one."""
    draw = random.Random(7)
    documents = (" ".join(draw.choices(WORDS, k=draw.randint(20, 60))) + "." for _ in range(60))
    (root / "words.txt").write_text("\n\n".join(documents))
    data = {
        "source": {"path": str(root / "words.txt"), "separator": "\n\n"},
        "out": str(root / "data"),
        "seq_len": 8,
        "tokenizer": {"vocab_size": 264},
        "validation_fraction": 0.2,
    }
    prepare(validate(PrepareConfig, data, "tiny_run"))
    sizes = {"vocab_size": 264, "hidden_size": 4, "intermediate_size": 4, "max_position_embeddings": 8}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = {
        "name": name,
        "runs_dir": str(root / "runs"),
        "model": sizes | heads,
        "data": {"path": data["out"]},
        "train": {"steps": steps, "batch_size": 2, "device": "cpu", "threads": 1},
        "optimizer": {"lr": 0.01},
        "snapshot": {"every": 2, "early": False, "probe_rows": 2, "modules": ["*_proj"]},
        "checkpoint": {"every": 2},
        "evaluate": {"every": 2, "perplexity": {"rows": 2}},
    }
    run = validate(RunConfig, config, "tiny_run")
    train(run, quiet=True)
    return run.layout
