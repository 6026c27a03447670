"""The part of `evaluate` that runs and model directories share."""

from __future__ import annotations

from pico_contract.layout import TOKENIZER, RunLayout
from pico_train.checkpoint.model_folder import load_model
from pico_train.commands.evaluation import stored_vocabulary


def test_a_vocabulary_is_read_beside_the_weights(finished: RunLayout) -> None:
    checkpoint = finished.checkpoint(10)
    decoder = load_model(checkpoint)
    vocabulary = stored_vocabulary(checkpoint, decoder)
    assert vocabulary.tokenizer == checkpoint / TOKENIZER
    assert (vocabulary.size, vocabulary.start_name) == (decoder.config.vocab_size, "eos")
    (checkpoint / TOKENIZER).unlink()
    assert stored_vocabulary(checkpoint, decoder).tokenizer is None
