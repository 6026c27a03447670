"""What can be evaluated, and where the results go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from pico_contract import codec
from pico_contract.errors import UserError, did_you_mean
from pico_contract.layout import RunLayout
from pico_contract.schema import EvaluationManifest, Measured
from pydantic import Field

from pico_train.config import Section
from pico_train.data.packed import PackedData
from pico_train.data.sources import HUB, documents
from pico_train.data.tokenizer import load_tokenizer, token_byte_lengths
from pico_train.evaluate.likelihood import TextEncoder
from pico_train.evaluate.minimal_pairs import BlimpConfig, minimal_pairs, pairs_settings, read_pairs
from pico_train.evaluate.perplexity import PerplexityConfig, perplexity
from pico_train.evaluate.text_perplexity import TextPerplexityConfig, text_perplexity
from pico_train.model.decoder import Decoder


class EvaluateConfig(Section):
    """Evaluation while training; every task that is configured is evaluated after the last update."""

    every: int = Field(0, ge=0)
    """Updates between evaluations before that; 0 is off."""
    perplexity: PerplexityConfig = PerplexityConfig()
    """On the data's validation rows."""
    text_perplexity: TextPerplexityConfig = TextPerplexityConfig()
    """On texts."""
    blimp: BlimpConfig = BlimpConfig()
    """On minimal pairs."""

    def reading(self, seq_len: int | None) -> EvaluateConfig:
        """The same, on `seq_len` tokens of a validation row, or of a text, where it does not say on how many."""
        rows = self.perplexity.model_copy(update={"seq_len": self.perplexity.seq_len or seq_len})
        texts = self.text_perplexity.model_copy(update={"seq_len": self.text_perplexity.seq_len or seq_len})
        return self.model_copy(update={"perplexity": rows, "text_perplexity": texts})


Result = tuple[dict[str, Any], dict[str, Measured]]


def _perplexity(model: Decoder, data: PackedData, config: EvaluateConfig) -> Result:
    if "validation" not in data.manifest.splits:
        raise UserError(f"{data.path} has no validation rows to evaluate on; prepare it with a validation split")
    rows = data.split("validation")
    settings = config.perplexity.settings(rows, model.config.max_position_embeddings)
    lengths = token_byte_lengths(load_tokenizer(data.tokenizer_path)) if data.tokenizer_path else None
    metrics = perplexity(model, rows, settings["rows"], settings["seq_len"], config.perplexity.batch_size, lengths)
    return {**settings, "data": data.manifest.fingerprint}, metrics


def _text_perplexity(model: Decoder, data: PackedData, config: EvaluateConfig) -> Result:
    wanted = config.text_perplexity
    window = min(wanted.seq_len or data.manifest.seq_len, model.config.max_position_embeddings)
    return text_perplexity(model, wanted, TextEncoder(data, wanted.start_token), window)


def _blimp(model: Decoder, data: PackedData, config: EvaluateConfig) -> Result:
    wanted = config.blimp
    if wanted.path is None:
        raise UserError("blimp has no sentences: set evaluate.blimp.path to a directory of .jsonl or hub:nyu-mll/blimp")
    pairs, encoder = read_pairs(wanted.path), TextEncoder(data, wanted.start_token)
    metrics = minimal_pairs(model, pairs, encoder, wanted.batch_tokens)
    return pairs_settings(pairs) | encoder.settings(), metrics


TASKS: dict[str, Callable[[Decoder, PackedData, EvaluateConfig], Result]] = {
    "perplexity": _perplexity,
    "text_perplexity": _text_perplexity,
    "blimp": _blimp,
}


def default_tasks(data: PackedData, config: EvaluateConfig) -> list[str]:
    """The tasks that `data` allows and `config` sets up."""
    wanted = {
        "perplexity": "validation" in data.manifest.splits,
        "text_perplexity": bool(config.text_perplexity.sources),
        "blimp": config.blimp.path is not None,
    }
    return [task for task, possible in wanted.items() if possible]


def check_tasks(data: PackedData, config: EvaluateConfig) -> None:
    """Open the local files that the tasks will read, so that a mistake shows before the first update.

    What lies on the hub is not looked for: that would download it.

    Raises:
        UserError: a source that cannot be read, or data without what the tasks need of it.
    """
    if config.text_perplexity.sources:
        encoder = TextEncoder(data, config.text_perplexity.start_token)
        for source in config.text_perplexity.sources.values():
            if not source.path.startswith(HUB):
                encoder(next(documents(source)))
    if config.blimp.path is not None:
        encoder = TextEncoder(data, config.blimp.start_token)
        if not config.blimp.path.startswith(HUB):
            encoder(read_pairs(config.blimp.path)[0].good)


def evaluate(
    model: Decoder,
    data: PackedData,
    config: EvaluateConfig,
    layout: RunLayout,
    run: str,
    step: int,
    tasks: list[str],
    failed: Callable[[str], None] | None = None,
) -> dict[str, dict[str, Measured]]:
    """Run `tasks` on `model` = theta_step and write one result file each; task -> metric -> value.

    With `failed` a task whose data cannot be read costs only itself: `failed` is told why.

    Raises:
        UserError: an unknown task, named with the nearest known one; without `failed`, data that cannot be read.
        OSError: a result cannot be written; without `failed`, a network or a disk that fails while data are read.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise UserError(f'there is no task "{unknown[0]}"{did_you_mean(unknown[0], TASKS)}')
    results = {}
    for task in tasks:
        try:
            settings, metrics = TASKS[task](model, data, config)
        except (UserError, OSError) as error:
            if failed is None:
                raise
            failed(f"step {step}: {task} is left out, for it cannot be measured: {error}")
            continue
        result = EvaluationManifest(
            created=codec.utc_now(), run=run, step=step, task=task, settings=settings, metrics=metrics
        )
        codec.write_text(layout.evaluation(step, task, settings_hash(settings)), result.to_json())
        results[task] = metrics
    return results


def settings_hash(settings: dict[str, Any]) -> str:
    """Eight hex digits that tell results of one task under different settings apart."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def in_one_line(results: dict[str, dict[str, Measured]]) -> str:
    """For the console: `perplexity: loss 4.2103, perplexity 67.3`; of parts (`accuracy/paradigm/X`) only the whole."""
    parts = [
        f"{task}: " + ", ".join(f"{name} {measured.value:.4f}" for name, measured in metrics.items() if "/" not in name)
        for task, metrics in results.items()
    ]
    return "; ".join(parts)
