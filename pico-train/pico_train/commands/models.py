"""The commands `evaluate` and `generate` for a Hugging Face model directory, which no run of ours
has made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pico_contract.digests import session_sha256
from pico_contract.errors import UserError
from pico_contract.layout import MANIFEST, MODEL_CONFIG, TOKENIZER, RunLayout, parse_step
from pydantic import Field

from pico_train.checkpoint.model_folder import load_model, read_token_ids, start_token
from pico_train.commands.generation import Sampling, continue_ids, require_utf8
from pico_train.commands.runs import evaluate_run, generate_text
from pico_train.config import Section, load
from pico_train.data.packed import PackedData
from pico_train.data.shards import StreamConfig
from pico_train.data.sources import expand_short_forms
from pico_train.data.tokenizer import Vocabulary, load_tokenizer
from pico_train.distributed import Device, Runtime
from pico_train.evaluate.progress import ShowProgress, hidden
from pico_train.evaluate.tasks import (
    EvaluateConfig,
    EvaluatedModel,
    ResultLocation,
    default_tasks,
    evaluate,
    in_one_line,
)
from pico_train.model.decoder import Decoder


class ModelDataConfig(Section):
    """Packed rows on which a model is evaluated."""

    path: Path | None = None
    """A data directory whose validation rows were made with the model's own tokenizer; null leaves
    out perplexity on rows."""
    stream: StreamConfig = StreamConfig()
    """Where shards of the hub are kept."""


class ModelEvaluationConfig(Section):
    """How a Hugging Face model directory is evaluated."""

    out: Path | None = None
    """Where results go; null is a directory `NAME-evaluation` beside the model."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation, as in the configuration of a run."""
    data: ModelDataConfig = ModelDataConfig()
    """Rows."""
    device: Device = Field("auto")
    """Device."""


def is_model_folder(path: Path) -> bool:
    """Whether `path` is a model directory, and neither a run nor a checkpoint inside of one."""
    return (
        (path / MODEL_CONFIG).is_file()
        and not RunLayout(path).manifest.is_file()
        and run_of(path) is None
    )


def run_of(path: Path) -> tuple[Path, int] | None:
    """(run directory, step) where `path` is a checkpoint inside a run; None elsewhere."""
    absolute = path.absolute()
    step, root = parse_step(absolute.name), absolute.parent.parent
    is_checkpoint = (
        step is not None and (path / MANIFEST).is_file() and RunLayout(root).manifest.is_file()
    )
    return (root, step) if is_checkpoint and step is not None else None


def evaluate_any(
    path: Path,
    step: int | None,
    tasks: list[str] | None,
    overrides: Sequence[str] = (),
    *,
    again: bool = False,
    trust: bool = False,
    progress: ShowProgress = hidden,
) -> str:
    """Evaluate a run, a checkpoint inside a run, or a model directory; errors as `evaluate_run`,
    `evaluate_folder`."""
    run, step = _run_and_step(path, step)
    if run is not None:
        return evaluate_run(
            run, step, tasks, overrides, again=again, trust=trust, progress=progress
        )
    return evaluate_folder(path, tasks, overrides, again=again, progress=progress)


def generate_any(path: Path, step: int | None, prompt: str, sampling: Sampling) -> str:
    """Continue `prompt` with a run, a checkpoint inside a run, or a model directory."""
    run, step = _run_and_step(path, step)
    if run is None:
        return generate_from_folder(path, prompt, sampling)
    how = sampling
    return generate_text(
        run, prompt, step, how.tokens, how.temperature, how.top_k, how.top_p, how.seed
    )


def _run_and_step(path: Path, step: int | None) -> tuple[Path | None, int | None]:
    """The run that `path` is, or lies in, and its step; no run where `path` is a model directory.

    Raises:
        UserError: `path` is none of these, or a step is asked of something that has only one.
    """
    inside = run_of(path)
    if inside is None and not is_model_folder(path):
        if not RunLayout(path).manifest.is_file():
            raise UserError(
                f"{path} is not a run directory (it has no {RunLayout(path).manifest.name}), nor a model directory (it"
                f" has no {MODEL_CONFIG})"
            )
        return path, step
    if step is not None and (inside is None or inside[1] != step):
        raise UserError(f"--step is {step}, but {path} is one model: leave --step out")
    return inside if inside is not None else (None, None)


def evaluate_folder(
    folder: Path,
    tasks: list[str] | None,
    overrides: Sequence[str] = (),
    *,
    again: bool = False,
    progress: ShowProgress = hidden,
) -> str:
    """Evaluate the model in `folder`; results are written beside it, or to `out`.

    A result that is there under the same settings, of the same bytes, is read back unless measured
    `again`.

    Raises:
        UserError: a model that this decoder cannot compute, an unknown key, rows of another
            tokenizer, no task.
    """
    config = load(ModelEvaluationConfig, None, expand_short_forms(overrides, {}))
    decoder = load_model(folder).to(Runtime(config.device).device)
    vocabulary = _vocabulary(folder, decoder)
    data = _data(config, vocabulary) if config.data.path is not None else None
    wanted = tasks if tasks is not None else default_tasks(data, config.evaluate)
    if not wanted:
        raise UserError(
            f"there is nothing to evaluate {folder} on: set data.path, evaluate.text_perplexity.sources,"
            " evaluate.paloma.path or evaluate.blimp.path"
        )
    out = config.out or folder.absolute().with_name(f"{folder.absolute().name}-evaluation")
    location = ResultLocation(
        RunLayout(out), folder.absolute().name, 0, model_sha256=_model_sha256(folder)
    )
    evaluated = EvaluatedModel(decoder, vocabulary, decoder.config.max_position_embeddings, data)
    known: list[str] = []
    read_back = None if again else known.append
    results = evaluate(
        evaluated, config.evaluate, location, wanted, read_back=read_back, show=progress
    )
    note = (
        f" (measured before under the same settings: {', '.join(known)}; --again repeats)"
        if known
        else ""
    )
    return f"{in_one_line(results)}{note}\nresults in {location.layout.evaluations_at(0)}"


def _vocabulary(folder: Path, decoder: Decoder) -> Vocabulary:
    """The model's own tokenizer and tokens; texts begin after its bos where it has one, else after
    its eos."""
    (name, start), tokenizer = start_token(read_token_ids(folder)), folder / TOKENIZER
    known = tokenizer if tokenizer.is_file() else None
    return Vocabulary(folder, known, start, decoder.config.vocab_size, start_name=name)


def _data(config: ModelEvaluationConfig, vocabulary: Vocabulary) -> PackedData:
    """The rows to evaluate on; UserError where they are not made of this model's ids."""
    assert config.data.path is not None
    data = PackedData.open(config.data.path, config.data.stream)
    data.verify_at_start()
    if data.manifest.vocab_size > vocabulary.size:
        raise UserError(
            f"the rows of {data.path} have a vocabulary of {data.manifest.vocab_size}, larger than the"
            f" {vocabulary.size} of {vocabulary.origin}: prepare them with tokenizer.path={vocabulary.origin}"
        )
    if data.tokenizer_path is None or vocabulary.tokenizer is None:
        return data
    words, others = (
        load_tokenizer(path).get_vocab() for path in (data.tokenizer_path, vocabulary.tokenizer)
    )
    if words != others:
        raise UserError(
            f"the rows of {data.path} were made with another tokenizer than that of {vocabulary.origin}: prepare them"
            f" with tokenizer.path={vocabulary.origin}"
        )
    return data


def _model_sha256(folder: Path) -> str:
    """sha256 over the names and bytes of what the model consists of."""
    files = sorted({folder / MODEL_CONFIG, *folder.glob("*.safetensors")})
    lines = [f"{path.name} {session_sha256(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def generate_from_folder(folder: Path, prompt: str, sampling: Sampling) -> str:
    """Continue `prompt` with the model in `folder`, after the special tokens that its
    tokenizer.json puts before it.

    Raises:
        UserError: there is no tokenizer.json, the prompt is not text or exceeds the positions with
            the new tokens.
    """
    require_utf8(prompt)
    tokenizer, ids = load_tokenizer(folder), read_token_ids(folder)
    start, end = start_token(ids)[1], ids.get("eos")
    fed = tokenizer.encode(prompt).ids or ([] if start is None else [start])
    return continue_ids(load_model(folder), tokenizer.decode, fed, sampling, end, str(folder))
