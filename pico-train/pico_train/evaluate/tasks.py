"""The evaluation tasks, and the files that hold their results.

A task is a function (model, configuration) -> `Prepared`, listed in `TASKS`. `evaluate` runs tasks
and writes one result file for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pico_contract import codec
from pico_contract.errors import DamagedError, UserError, did_you_mean
from pico_contract.layout import MANIFEST, RunLayout
from pico_contract.schema import CheckpointManifest, EvaluationManifest, Measurement
from pydantic import Field

from pico_train.config import Section
from pico_train.data.packed import PackedData
from pico_train.data.sources import HUB, documents
from pico_train.data.tokenizer import Vocabulary
from pico_train.evaluate.likelihood import TextEncoder
from pico_train.evaluate.minimal_pairs import (
    BlimpConfig,
    distinct_sentences,
    minimal_pairs,
    pairs_settings,
    read_pairs,
)
from pico_train.evaluate.paloma import PalomaConfig
from pico_train.evaluate.perplexity import PerplexityConfig, perplexity
from pico_train.evaluate.progress import Advance, Amount, ShowProgress, hidden
from pico_train.evaluate.text_perplexity import (
    Sources,
    TextPerplexityConfig,
    TextsConfig,
    text_perplexity,
    texts_settings,
)
from pico_train.model.decoder import Decoder


class EvaluateConfig(Section):
    """Evaluation while training. Every configured task is evaluated after the last update."""

    every: int = Field(0, ge=0)
    """Updates between evaluations before the last update; 0 is off."""
    perplexity: PerplexityConfig = PerplexityConfig()
    """Perplexity on the validation rows of the data."""
    text_perplexity: TextPerplexityConfig = TextPerplexityConfig()
    """Perplexity on texts."""
    paloma: PalomaConfig = PalomaConfig()
    """Perplexity on Paloma."""
    blimp: BlimpConfig = BlimpConfig()
    """Accuracy on minimal pairs."""

    def steps(self, last: int) -> list[int]:
        """Return the evaluated steps of a run of `last` updates: never step 0, always the last."""
        # theta_0 is untrained: its loss is that of the initial weights.
        regular = range(self.every, last, self.every) if self.every else ()
        return [*regular, last]

    def due(self, step: int, last: int) -> bool:
        """Return whether theta_`step` is evaluated in a run of `last` updates."""
        return step == last or (step > 0 and self.every > 0 and step % self.every == 0)

    def reading(self, seq_len: int | None) -> EvaluateConfig:
        """Return a copy that reads `seq_len` tokens of a validation row unless it sets a number."""
        seq_len = self.perplexity.seq_len or seq_len
        rows = self.perplexity.model_copy(update={"seq_len": seq_len})
        return self.model_copy(update={"perplexity": rows})


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate, with its vocabulary and data."""

    model: Decoder
    vocabulary: Vocabulary
    seq_len: int | None
    """Tokens that training predicts in a row; None if unknown."""
    data: PackedData | None
    """The data of its run; without them there are no validation rows to measure on."""


@dataclass(frozen=True)
class Prepared:
    """A task that is ready to be measured."""

    settings: dict[str, Any]
    """Everything that decides the result; results are filed by its hash."""
    amount: Amount
    measure: Callable[[Advance], dict[str, Measurement]]


def _perplexity(evaluated: EvaluatedModel, config: EvaluateConfig) -> Prepared:
    data, model = evaluated.data, evaluated.model
    if data is None or "validation" not in data.manifest.splits:
        where = evaluated.vocabulary.origin if data is None else data.path
        raise UserError(
            f"{where} has no validation rows to evaluate on; prepare it with a validation split"
        )
    rows = data.split("validation")
    settings = config.perplexity.settings(rows, model.config.max_position_embeddings)
    n_rows, seq_len, batch_size = (
        settings["rows"],
        settings["seq_len"],
        config.perplexity.batch_size,
    )
    byte_lengths = data.token_byte_lengths()
    if byte_lengths is None:
        settings["bytes"] = (
            "not counted: the ids of this tokenizer do not tell the bytes of the text"
        )
    return Prepared(
        {**settings, "data": data.manifest.fingerprint},
        Amount(n_rows, rows.n_rows, "validation rows"),
        lambda advance: perplexity(
            model, rows, n_rows, seq_len, batch_size, byte_lengths, advance
        ),
    )


def _text_perplexity(evaluated: EvaluatedModel, config: EvaluateConfig) -> Prepared:
    texts = config.text_perplexity
    return _on_texts(evaluated, texts.reading(), texts)


def _paloma(evaluated: EvaluatedModel, config: EvaluateConfig) -> Prepared:
    prepared = _on_texts(evaluated, config.paloma.reading(), config.paloma)
    return replace(prepared, settings={**prepared.settings, "split": config.paloma.split})


def _on_texts(evaluated: EvaluatedModel, sources: Sources, config: TextsConfig) -> Prepared:
    encoder = TextEncoder(evaluated.vocabulary, config.start_token)
    seq_len = config.seq_len or evaluated.seq_len
    if seq_len is None:
        raise UserError(
            "nothing tells how many tokens of a row training predicted: set seq_len of the task"
        )
    window = min(seq_len, evaluated.model.config.max_position_embeddings)
    settings = texts_settings(sources, config, window) | encoder.settings()
    n_texts = sum(source["texts"] for source in settings["sources"].values())
    return Prepared(
        settings,
        Amount(n_texts, n_texts, "texts"),
        lambda advance: text_perplexity(
            evaluated.model, sources, config, encoder, window, advance
        ),
    )


def _blimp(evaluated: EvaluatedModel, config: EvaluateConfig) -> Prepared:
    blimp = config.blimp
    if blimp.path is None:
        raise UserError(
            "blimp has no sentences: set evaluate.blimp.path to a directory of .jsonl or hub:nyu-mll/blimp"
        )
    pairs = read_pairs(blimp.path)
    encoder = TextEncoder(evaluated.vocabulary, blimp.start_token)
    n_sentences = len(distinct_sentences(pairs))
    return Prepared(
        pairs_settings(pairs) | encoder.settings(),
        Amount(n_sentences, n_sentences, "sentences"),
        lambda advance: minimal_pairs(
            evaluated.model, pairs, encoder, blimp.batch_tokens, advance
        ),
    )


TASKS: dict[str, Callable[[EvaluatedModel, EvaluateConfig], Prepared]] = {
    "perplexity": _perplexity,
    "text_perplexity": _text_perplexity,
    "paloma": _paloma,
    "blimp": _blimp,
}
"""Every task by name. A new task is a function here and a section in `EvaluateConfig`."""


def default_tasks(data: PackedData | None, config: EvaluateConfig) -> list[str]:
    """Return the tasks that `data` allows and `config` sets up."""
    is_possible = {
        "perplexity": data is not None and "validation" in data.manifest.splits,
        "text_perplexity": bool(config.text_perplexity.sources),
        "paloma": config.paloma.path is not None,
        "blimp": config.blimp.path is not None,
    }
    return [task for task, possible in is_possible.items() if possible]


def check_tasks(data: PackedData, config: EvaluateConfig) -> None:
    """Encode one text of each source, so that a mistake shows before the first update.

    Sources on the hub are not opened, because that would download them.

    Raises:
        UserError: a source cannot be read, or the data lack what the tasks need of it.
    """
    _check_texts(data.vocabulary, config.text_perplexity)
    _check_paloma(data.vocabulary, config.paloma)
    _check_blimp(data.vocabulary, config.blimp)


def _check_texts(vocabulary: Vocabulary, config: TextPerplexityConfig) -> None:
    if not config.sources:
        return
    encoder = TextEncoder(vocabulary, config.start_token)
    for source in config.sources.values():
        if not source.path.startswith(HUB):
            encoder(next(documents(source)))


def _check_paloma(vocabulary: Vocabulary, config: PalomaConfig) -> None:
    if config.path is None:
        return
    encoder = TextEncoder(vocabulary, config.start_token)
    if not config.path.startswith(HUB):
        for read in config.reading().values():
            encoder(next(read()))


def _check_blimp(vocabulary: Vocabulary, config: BlimpConfig) -> None:
    if config.path is None:
        return
    encoder = TextEncoder(vocabulary, config.start_token)
    if not config.path.startswith(HUB):
        encoder(read_pairs(config.path)[0].good)


@dataclass(frozen=True)
class ResultLocation:
    """The place of the results of theta_step of a run."""

    layout: RunLayout
    run: str
    step: int
    model_sha256: str | None = None
    """Hash of the files of a model that no run of ours has made; its results state it."""

    def settings(self, prepared: Prepared) -> dict[str, Any]:
        """Return the settings of a task, with the model's hash if the place does not name it."""
        model = {"model": self.model_sha256} if self.model_sha256 is not None else {}
        return prepared.settings | model


def evaluate(
    evaluated: EvaluatedModel,
    config: EvaluateConfig,
    location: ResultLocation,
    tasks: list[str],
    *,
    read_back: Callable[[str], None] | None = None,
    failed: Callable[[str], None] | None = None,
    show: ShowProgress = hidden,
) -> dict[str, dict[str, Measurement]]:
    """Run `tasks`, write one result file for each, and return task -> metric -> value.

    With `read_back`, an existing result is read instead of measured, and `read_back` is called with
    the task. With `failed`, a task whose data cannot be read is skipped, and `failed` is called
    with the reason. `show` displays the progress of each task that is measured.

    Raises:
        UserError: an unknown task, named with the nearest known one; without `failed`, data that
            cannot be read.
        OSError: a result cannot be written; without `failed`, a network or a disk that fails while
            data are read.
    """
    for task in tasks:
        # All are checked first: a typo must not cost the time of the tasks before it.
        if task not in TASKS:
            raise UserError(f'there is no task "{task}"{did_you_mean(task, TASKS)}')
    results = {}
    for task in tasks:
        try:
            # Preparing reads the data, so its errors belong to the task.
            prepared = TASKS[task](evaluated, config)
            settings = location.settings(prepared)
            known = stored(location, task, settings) if read_back is not None else None
            metrics = known if known is not None else _measure(task, prepared, show)
        except (UserError, OSError) as error:
            if failed is None:
                raise
            failed(
                f"step {location.step}: {task} is left out, for it cannot be measured: {error}"
            )
            continue
        # Outside of the try: a result that cannot be written is never a task to skip.
        if known is None:
            _write(location, task, settings, metrics)
        elif read_back is not None:
            read_back(task)
        results[task] = metrics
    return results


def _measure(task: str, prepared: Prepared, show: ShowProgress) -> dict[str, Measurement]:
    with show(task, prepared.amount) as advance:
        return prepared.measure(advance)


def stored(
    location: ResultLocation, task: str, settings: dict[str, Any]
) -> dict[str, Measurement] | None:
    """Return the intact result of `task` under `settings`, or None.

    A result older than the checkpoint does not count: the step was trained again since.
    """
    path = location.layout.evaluation(location.step, task, settings)
    try:
        result = codec.read_manifest(path, EvaluationManifest)
        # A foreign model has no checkpoint of ours; its hash is among the settings.
        oldest = "" if location.model_sha256 is not None else _checkpoint(location).created
    except DamagedError:
        return None
    # The file's name holds only 32 bits of the hash of the settings, so they are compared too.
    is_same = result.settings == settings and result.step == location.step
    # Times are whole seconds, so a result may be exactly as old as its checkpoint.
    return result.metrics if is_same and result.created >= oldest else None


def _checkpoint(location: ResultLocation) -> CheckpointManifest:
    return codec.read_manifest(
        location.layout.checkpoint(location.step) / MANIFEST, CheckpointManifest
    )


def _write(
    location: ResultLocation,
    task: str,
    settings: dict[str, Any],
    metrics: dict[str, Measurement],
) -> None:
    result = EvaluationManifest(
        created=codec.utc_now(),
        run=location.run,
        step=location.step,
        task=task,
        settings=settings,
        metrics=metrics,
    )
    codec.write_text(
        location.layout.evaluation(location.step, task, settings), result.to_json()
    )


def in_one_line(results: dict[str, dict[str, Measurement]]) -> str:
    """Format results for the console, such as `perplexity: loss 4.2103, perplexity 67.3000`.

    Metrics of parts (`accuracy/paradigm/X`) are left out.
    """
    tasks = []
    for task, metrics in results.items():
        whole = {name: result for name, result in metrics.items() if "/" not in name}
        numbers = [f"{name} {result.value:.4f}" for name, result in whole.items()]
        tasks.append(f"{task}: {', '.join(numbers)}")
    return "; ".join(tasks)
