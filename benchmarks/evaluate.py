"""Measure the cost of BLiMP (`make bench-evaluate`): the demo's decoder, random weights, a start token, fp32, CPU.

The pairs come from a directory in BLiMP's format (--pairs), or are 13,000 made-up pairs of BLiMP's mean length. The
reference is transformers' LlamaForCausalLM with the same weights, one sentence at a time, on the first pairs of each
paradigm; it must agree to 1e-4 nats, and the two are timed alternately within one process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import tempfile
import time
from pathlib import Path

import torch
from pico_train.config import validate
from pico_train.data.packed import PackedData
from pico_train.data.prepare import PrepareConfig, prepare
from pico_train.evaluate.likelihood import TextEncoder
from pico_train.evaluate.minimal_pairs import BlimpConfig, MinimalPair, minimal_pairs, read_pairs, sentence_nll
from pico_train.model.decoder import Decoder, DecoderConfig
from transformers import LlamaConfig, LlamaForCausalLM

MODEL = DecoderConfig(2048, 128, 384, 4, 4, 2, max_position_embeddings=256)
THREADS, SUBSET, WORDS = 2, 20, 8
BATCH_TOKENS = BlimpConfig().batch_tokens


def made_up(paradigms: int = 13, each: int = 1000) -> list[MinimalPair]:
    """Sentences of as many words as BLiMP's have on average."""
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioustrnl", k=draw.randint(2, 8))) for _ in range(2000)]

    def sentence() -> str:
        return " ".join(draw.choices(words, k=draw.randint(WORDS - 3, WORDS + 3))) + "."

    return [MinimalPair(sentence(), sentence(), f"p{i}", f"f{i}") for i in range(paradigms) for _ in range(each)]


def encoder_for(pairs: list[MinimalPair], root: Path) -> TextEncoder:
    """A tokenizer of the model's vocabulary, trained on the sentences."""
    source = root / "sentences.jsonl"
    source.write_text("".join(json.dumps({"text": f"{pair.good} {pair.bad}"}) + "\n" for pair in pairs))
    raw = {"source": str(source), "out": str(root / "data"), "seq_len": 64, "tokenizer": {"vocab_size": 2048}}
    return TextEncoder(PackedData.open(prepare(validate(PrepareConfig, raw, "bench"))).vocabulary, "eos")


@torch.no_grad()
def one_at_a_time(model: LlamaForCausalLM, sentences: list[str], encoder: TextEncoder) -> dict[str, float]:
    found = {}
    for sentence in sentences:
        ids = torch.from_numpy(encoder(sentence))
        logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0].double()
        found[sentence] = -logits.log_softmax(-1).gather(1, ids[1:, None]).sum().item()
    return found


def report(pairs: list[MinimalPair]) -> None:
    torch.set_num_threads(THREADS)
    decoder = Decoder(MODEL)
    decoder.init_weights(lambda name: torch.Generator().manual_seed(len(name)))
    reference = LlamaForCausalLM(LlamaConfig(**dataclasses.asdict(MODEL))).eval()
    reference.load_state_dict(decoder.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        encoder = encoder_for(pairs, Path(folder))
    subset = pairs[:: max(1, len(pairs) // (13 * SUBSET))]
    sentence_nll(decoder, subset, encoder, BATCH_TOKENS)  # to warm up
    start = time.perf_counter()
    ours = sentence_nll(decoder, subset, encoder, BATCH_TOKENS)
    batched = time.perf_counter()
    theirs = one_at_a_time(reference, list(ours), encoder)
    single = time.perf_counter()
    busy = time.process_time()
    minimal_pairs(decoder, pairs, encoder, BATCH_TOKENS)
    whole, busy = time.perf_counter() - single, time.process_time() - busy
    apart = max(abs(ours[sentence] - theirs[sentence]) for sentence in theirs)
    print(f"BLiMP, {len(pairs)} pairs, decoder of {sum(p.numel() for p in decoder.parameters()):,} parameters, CPU")
    print(f"  all pairs                {whole:7.1f} s, {busy:.1f} s of processor time  (aim: under 120 s on 2 cores)")
    print(f"  speed / one at a time    {(single - batched) / (batched - start):7.1f}    on {len(subset)} pairs")
    print(f"  largest difference       {apart:7.1e} nats  (aim: at most 1e-4)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    data = os.environ.get("PICO_TEST_DATA")
    parser.add_argument("--pairs", default=f"{data}/blimp" if data else None, help="directory of .jsonl files")
    given = parser.parse_args()
    report(read_pairs(given.pairs) if given.pairs else made_up())
