"""What can be evaluated, and where the results go."""

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
    """Evaluation while training; every task that is configured is evaluated after the last
    update."""

    every: int = Field(0, ge=0)
    """Updates between evaluations before that; 0 is off."""
    perplexity: PerplexityConfig = PerplexityConfig()
    """On the data's validation rows."""
    text_perplexity: TextPerplexityConfig = TextPerplexityConfig()
    """On texts."""
    paloma: PalomaConfig = PalomaConfig()
    """On Paloma."""
    blimp: BlimpConfig = BlimpConfig()
    """On minimal pairs."""

    def steps(self, last: int) -> list[int]:
        """Steps of a run of `last` updates that are evaluated, ascending: never step 0, always the
        last."""
        regular = range(self.every, last, self.every) if self.every else ()
        return [*regular, last]

    def due(self, step: int, last: int) -> bool:
        """Whether theta_`step` is evaluated in a run of `last` updates."""
        return step == last or (step > 0 and self.every > 0 and step % self.every == 0)

    def reading(self, seq_len: int | None) -> EvaluateConfig:
        """The same, on `seq_len` tokens of a validation row where it does not say on how many."""
        rows = self.perplexity.model_copy(update={"seq_len": self.perplexity.seq_len or seq_len})
        return self.model_copy(update={"perplexity": rows})


@dataclass(frozen=True)
class EvaluatedModel:
    """What is evaluated, and what belongs to it: without `data` there are no validation rows to
    measure on."""

    model: Decoder
    vocabulary: Vocabulary
    seq_len: int | None  # tokens that training predicts in a row; None where nothing tells
    data: PackedData | None


@dataclass(frozen=True)
class Prepared:
    """A task about to be measured, and all that decides its result."""

    settings: dict[str, Any]
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
    lengths = data.token_byte_lengths()
    if lengths is None:
        settings["bytes"] = (
            "not counted: the ids of this tokenizer do not tell the bytes of the text"
        )
    size, batch = (settings["rows"], settings["seq_len"]), config.perplexity.batch_size
    return Prepared(
        {**settings, "data": data.manifest.fingerprint},
        Amount(settings["rows"], rows.n_rows, "validation rows"),
        lambda advance: perplexity(model, rows, *size, batch, lengths, advance),
    )


def _text_perplexity(evaluated: EvaluatedModel, config: EvaluateConfig) -> Prepared:
    wanted = config.text_perplexity
    return _on_texts(evaluated, wanted.reading(), wanted)


def _paloma(evaluated: EvaluatedModel, config: EvaluateConfig) -> Prepared:
    prepared = _on_texts(evaluated, config.paloma.reading(), config.paloma)
    return replace(prepared, settings={**prepared.settings, "split": config.paloma.split})


def _on_texts(evaluated: EvaluatedModel, sources: Sources, config: TextsConfig) -> Prepared:
    encoder, wanted = (
        TextEncoder(evaluated.vocabulary, config.start_token),
        config.seq_len or evaluated.seq_len,
    )
    if wanted is None:
        raise UserError(
            "nothing tells how many tokens of a row training predicted: set seq_len of the task"
        )
    window = min(wanted, evaluated.model.config.max_position_embeddings)
    settings = texts_settings(sources, config, window) | encoder.settings()
    texts = sum(source["texts"] for source in settings["sources"].values())
    return Prepared(
        settings,
        Amount(texts, texts, "texts"),
        lambda advance: text_perplexity(evaluated.model, sources, config, encoder, window, advance),
    )


def _blimp(evaluated: EvaluatedModel, config: EvaluateConfig) -> Prepared:
    wanted = config.blimp
    if wanted.path is None:
        raise UserError(
            "blimp has no sentences: set evaluate.blimp.path to a directory of .jsonl or hub:nyu-mll/blimp"
        )
    pairs, encoder = read_pairs(wanted.path), TextEncoder(evaluated.vocabulary, wanted.start_token)
    sentences = len(distinct_sentences(pairs))
    return Prepared(
        pairs_settings(pairs) | encoder.settings(),
        Amount(sentences, sentences, "sentences"),
        lambda advance: minimal_pairs(
            evaluated.model, pairs, encoder, wanted.batch_tokens, advance
        ),
    )


TASKS: dict[str, Callable[[EvaluatedModel, EvaluateConfig], Prepared]] = {
    "perplexity": _perplexity,
    "text_perplexity": _text_perplexity,
    "paloma": _paloma,
    "blimp": _blimp,
}


def default_tasks(data: PackedData | None, config: EvaluateConfig) -> list[str]:
    """The tasks that `data` allows and `config` sets up."""
    wanted = {
        "perplexity": data is not None and "validation" in data.manifest.splits,
        "text_perplexity": bool(config.text_perplexity.sources),
        "paloma": config.paloma.path is not None,
        "blimp": config.blimp.path is not None,
    }
    return [task for task, possible in wanted.items() if possible]


def check_tasks(data: PackedData, config: EvaluateConfig) -> None:
    """Open the local files that the tasks will read, so that a mistake shows before the first
    update.

    What lies on the hub is not looked for: that would download it.

    Raises:
        UserError: a source that cannot be read, or data without what the tasks need of it.
    """
    texts, paloma, blimp = config.text_perplexity, config.paloma, config.blimp
    if texts.sources:
        encoder = TextEncoder(data.vocabulary, texts.start_token)
        for source in texts.sources.values():
            if not source.path.startswith(HUB):
                encoder(next(documents(source)))
    if paloma.path is not None:
        encoder = TextEncoder(data.vocabulary, paloma.start_token)
        for read in [] if paloma.path.startswith(HUB) else paloma.reading().values():
            encoder(next(read()))
    if blimp.path is not None:
        encoder = TextEncoder(data.vocabulary, blimp.start_token)
        if not blimp.path.startswith(HUB):
            encoder(read_pairs(blimp.path)[0].good)


@dataclass(frozen=True)
class ResultLocation:
    """Where results of theta_step of a run go."""

    layout: RunLayout
    run: str
    step: int
    model_sha256: str | None = None
    """Of the files of a model that no run of ours has made; its results state it."""

    def settings(self, prepared: Prepared) -> dict[str, Any]:
        """The settings of a task, with the model where its place does not say which."""
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
    """Run `tasks` and write one result file each; task -> metric -> value.

    With `read_back` a result that is there already is read instead of measured, and the task told
    to it. With `failed` a task whose data cannot be read costs only itself: `failed` is told why.
    `show` gets the name and the amount of each task that is measured, and is called while it runs.

    Raises:
        UserError: an unknown task, named with the nearest known one; without `failed`, data that
            cannot be read.
        OSError: a result cannot be written; without `failed`, a network or a disk that fails while
            data are read.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise UserError(f'there is no task "{unknown[0]}"{did_you_mean(unknown[0], TASKS)}')
    results = {}
    for task in tasks:
        try:
            prepared = TASKS[task](evaluated, config)
            settings = location.settings(prepared)
            known = stored(location, task, settings) if read_back is not None else None
            metrics = known if known is not None else _measure(task, prepared, show)
        except (UserError, OSError) as error:
            if failed is None:
                raise
            failed(f"step {location.step}: {task} is left out, for it cannot be measured: {error}")
            continue
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
    """The intact result of `task` under `settings`; None where there is none, or one older than the
    checkpoint."""
    path = location.layout.evaluation(location.step, task, settings)
    try:
        found = codec.read_manifest(path, EvaluationManifest)
        oldest = "" if location.model_sha256 is not None else _checkpoint(location).created
    except DamagedError:
        return None
    same = found.settings == settings and found.step == location.step and found.created >= oldest
    return found.metrics if same else None


def _checkpoint(location: ResultLocation) -> CheckpointManifest:
    return codec.read_manifest(
        location.layout.checkpoint(location.step) / MANIFEST, CheckpointManifest
    )


def _write(
    location: ResultLocation, task: str, settings: dict[str, Any], metrics: dict[str, Measurement]
) -> None:
    result = EvaluationManifest(
        created=codec.utc_now(),
        run=location.run,
        step=location.step,
        task=task,
        settings=settings,
        metrics=metrics,
    )
    codec.write_text(location.layout.evaluation(location.step, task, settings), result.to_json())


def in_one_line(results: dict[str, dict[str, Measurement]]) -> str:
    """For the console: `perplexity: loss 4.2103, perplexity 67.3`; of parts (`accuracy/paradigm/X`)
    only the whole."""
    parts = [
        f"{task}: "
        + ", ".join(
            f"{name} {measured.value:.4f}" for name, measured in metrics.items() if "/" not in name
        )
        for task, metrics in results.items()
    ]
    return "; ".join(parts)
