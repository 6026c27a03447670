"""The commands `evaluate` and `generate` for a run, or for any Hugging Face model directory."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from pico_contract.digests import session_sha256
from pico_contract.errors import UserError
from pico_contract.layout import MANIFEST, MODEL_CONFIG, RunLayout, parse_step
from pydantic import Field

from pico_train.checkpoint.model_folder import load_model, read_token_ids
from pico_train.commands.evaluation import evaluate_in_one_line, stored_vocabulary
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
)


class ModelDataConfig(Section):
    """Packed rows on which a model is evaluated."""

    path: Path | None = None
    """Data directory whose validation rows were made with the model's tokenizer.

    null skips the task `perplexity`."""
    stream: StreamConfig = StreamConfig()
    """Settings of the shards that are downloaded from the hub."""


class ModelEvaluationConfig(Section):
    """How a Hugging Face model directory is evaluated."""

    out: Path | None = None
    """Directory of the results; null is `NAME-evaluation` beside the model."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Tasks and their settings, as in the configuration of a run."""
    data: ModelDataConfig = ModelDataConfig()
    """Rows for the task `perplexity`."""
    device: Device = Field("auto")
    """Device that computes; auto takes an accelerator if there is one."""


def is_model_folder(path: Path) -> bool:
    """Whether `path` is a model directory, but neither a run nor a checkpoint inside a run."""
    # A checkpoint of a run holds a config.json as well.
    is_model = (path / MODEL_CONFIG).is_file()
    is_run = RunLayout(path).manifest.is_file()
    return is_model and not is_run and run_of(path) is None


def run_of(path: Path) -> tuple[Path, int] | None:
    """Return (run directory, step) if `path` is a checkpoint inside a run, else None."""
    # A relative path such as `.` shows neither the step nor the run above it.
    absolute = path.absolute()
    step, root = parse_step(absolute.name), absolute.parent.parent
    if step is None or not (path / MANIFEST).is_file():
        return None
    return (root, step) if RunLayout(root).manifest.is_file() else None


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
    """Evaluate a run, a checkpoint inside a run, or a model directory.

    Raises as `evaluate_run` or `evaluate_folder`.
    """
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
    return generate_text(run, prompt, step, **dataclasses.asdict(sampling))


def _run_and_step(path: Path, step: int | None) -> tuple[Path | None, int | None]:
    """Find the run that `path` is or lies in, and the step; (None, None) for a model directory.

    Raises:
        UserError: `path` is none of these, or `step` is given for a path that has only one.
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
    """Evaluate the model in `folder`, and store the results beside it or in `out`.

    A stored result of the same model bytes under the same settings is read back, unless `again` is
    set.

    Raises:
        UserError: this decoder cannot compute the model, a key is unknown, the rows were made with
            another tokenizer, or there is no task.
    """
    config = load(ModelEvaluationConfig, None, expand_short_forms(overrides, {}))
    decoder = load_model(folder).to(Runtime(config.device).device)
    vocabulary = stored_vocabulary(folder, decoder)
    data = None
    if config.data.path is not None:
        data = _open_rows(config.data.path, config.data.stream, vocabulary)
    wanted = tasks if tasks is not None else default_tasks(data, config.evaluate)
    if not wanted:
        raise UserError(
            f"there is nothing to evaluate {folder} on: set data.path, evaluate.text_perplexity.sources,"
            " evaluate.paloma.path or evaluate.blimp.path"
        )
    # A relative path such as `.` has no name to build the name of the results from.
    absolute = folder.absolute()
    out = config.out or absolute.with_name(f"{absolute.name}-evaluation")
    # A model directory has no steps: its results lie where those of step 0 of a run would.
    location = ResultLocation(
        RunLayout(out), absolute.name, step=0, model_sha256=_model_sha256(folder)
    )
    evaluated = EvaluatedModel(
        decoder, vocabulary, decoder.config.max_position_embeddings, data
    )
    results = evaluate_in_one_line(
        evaluated, config.evaluate, location, wanted, again=again, progress=progress
    )
    return f"{results}\nresults in {location.layout.evaluations_at(0)}"


def _open_rows(path: Path, stream: StreamConfig, vocabulary: Vocabulary) -> PackedData:
    """Open the rows to evaluate on, and refuse rows of another vocabulary than the model's."""
    data = PackedData.open(path, stream)
    data.verify_at_start()
    # A smaller vocabulary is fine: embeddings are often padded to more rows than there are ids.
    if data.manifest.vocab_size > vocabulary.size:
        raise UserError(
            f"the rows of {data.path} have a vocabulary of {data.manifest.vocab_size}, larger than the"
            f" {vocabulary.size} of {vocabulary.origin}: prepare them with tokenizer.path={vocabulary.origin}"
        )
    if data.tokenizer_path is None or vocabulary.tokenizer is None:
        return data
    # Ids are compared rather than files: the layout of tokenizer.json does not change them.
    ids_of_rows = load_tokenizer(data.tokenizer_path).get_vocab()
    ids_of_model = load_tokenizer(vocabulary.tokenizer).get_vocab()
    if ids_of_rows != ids_of_model:
        raise UserError(
            f"the rows of {data.path} were made with another tokenizer than that of {vocabulary.origin}: prepare them"
            f" with tokenizer.path={vocabulary.origin}"
        )
    return data


def _model_sha256(folder: Path) -> str:
    """Hash the names and bytes of the model's configuration and weights."""
    # Metadata, tokenizer and README do not change what the model computes.
    files = sorted({folder / MODEL_CONFIG, *folder.glob("*.safetensors")})
    lines = [f"{path.name} {session_sha256(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def generate_from_folder(folder: Path, prompt: str, sampling: Sampling) -> str:
    """Continue `prompt` with the model in `folder`.

    The prompt follows the special tokens that tokenizer.json puts before a text.

    Raises:
        UserError: there is no tokenizer.json, the prompt is not text, or prompt and new tokens
            exceed the model's positions.
    """
    require_utf8(prompt)
    tokenizer = load_tokenizer(folder)
    token_ids = read_token_ids(folder)
    ids = tokenizer.encode(prompt).ids
    decoder = load_model(folder)
    return continue_ids(decoder, tokenizer.decode, ids, sampling, token_ids, str(folder))
