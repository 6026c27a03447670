"""Make the frozen directories of fixtures/: `python tests/contract/make_fixture.py NEW_EMPTY_DIRECTORY`.

They are what format version 1 wrote when it was released, and every later version must open them. So never regenerate
them for the same format version: a test that fails on them has found a reader that broke, and the reader is what must
change. A new format version gets directories of its own (run_v2, data_v2) beside these.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

from pico_contract.layout import RunLayout
from pico_contract.schema import FORMAT_VERSION
from pico_train import train
from pico_train.config import validate
from pico_train.data.prepare import PrepareConfig, prepare
from pico_train.run import RunConfig

WORDS = ("king", "queen", "crown", "sword", "love", "war", "speaks", "weeps", "falls", "rises")


def main(out: Path) -> None:
    os.chdir(out)  # so that every recorded path is relative
    corpus = Path("corpus.txt")
    draw = random.Random(1)
    documents = [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(12)]
    corpus.write_text("\n\n".join(documents), encoding="utf-8")
    data = prepare(
        validate(
            PrepareConfig,
            {
                "source": {"path": str(corpus), "separator": "\n\n"},
                "out": f"data_v{FORMAT_VERSION}",
                "seq_len": 8,
                "tokenizer": {"vocab_size": 260},
                "validation_fraction": 0.4,
                "licence": "CC0-1.0",
            },
            "fixture",
        )
    )
    corpus.unlink()
    config = {
        "name": f"run_v{FORMAT_VERSION}",
        "runs_dir": ".",
        "model": {
            "vocab_size": 260,
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 8,
        },
        "data": {"path": str(data)},
        "train": {"steps": 2, "batch_size": 4, "device": "cpu", "threads": 1},
        "snapshot": {"every": 2, "probe_rows": 3},
        "checkpoint": {"every": 2},
        "evaluate": {"perplexity": {"rows": 4}},
        "schedule": {"warmup_steps": 1},
    }
    run = validate(RunConfig, config, "fixture")
    train(run, quiet=True)
    _forget_this_machine(run.layout)


def _forget_this_machine(layout: RunLayout) -> None:
    manifest = json.loads(layout.manifest.read_text(encoding="utf-8"))
    for session in manifest["sessions"]:
        session.update(host="example", commit=None)
    layout.manifest.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
