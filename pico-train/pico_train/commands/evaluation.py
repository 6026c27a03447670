"""The part of the command `evaluate` that runs and model directories share."""

from __future__ import annotations

from pathlib import Path

from pico_contract.layout import TOKENIZER

from pico_train.checkpoint.model_folder import read_token_ids, start_token
from pico_train.data.tokenizer import Vocabulary
from pico_train.evaluate.progress import ShowProgress
from pico_train.evaluate.tasks import (
    EvaluateConfig,
    EvaluatedModel,
    ResultLocation,
    evaluate,
    in_one_line,
)
from pico_train.model.decoder import Decoder


def stored_vocabulary(folder: Path, decoder: Decoder) -> Vocabulary:
    """Return the tokenizer and the start token that lie beside the weights of `decoder`.

    Texts begin after the model's bos token if it has one, else after its eos token.
    """
    name, start = start_token(read_token_ids(folder))
    path = folder / TOKENIZER
    tokenizer = path if path.is_file() else None
    return Vocabulary(folder, tokenizer, start, decoder.config.vocab_size, start_name=name)


def evaluate_in_one_line(
    evaluated: EvaluatedModel,
    config: EvaluateConfig,
    location: ResultLocation,
    tasks: list[str],
    *,
    again: bool,
    progress: ShowProgress,
) -> str:
    """Evaluate `tasks` and name their results in one line; raises as `evaluate`.

    A stored result under the same settings is read back, unless `again` is set.
    """
    known: list[str] = []
    read_back = None if again else known.append
    results = evaluate(evaluated, config, location, tasks, read_back=read_back, show=progress)
    line = in_one_line(results)
    if not known:
        return line
    return (
        f"{line} (measured before under the same settings: {', '.join(known)}; --again repeats)"
    )
