"""`pico-train generate` on a run: what it draws, and what it refuses."""

from __future__ import annotations

import pytest
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_train.commands import generate_text


def test_a_prompt_that_is_no_text_is_refused(finished: RunLayout) -> None:
    with pytest.raises(UserError, match="the prompt is not UTF-8"):
        generated(finished, prompt=b"\xff".decode("utf-8", "surrogateescape"))


def generated(run: RunLayout, prompt: str = "the king", **changes: object) -> str:
    settings = {"step": None, "tokens": 12, "temperature": 1.0, "top_k": None, "top_p": None, "seed": 0, **changes}
    return generate_text(run.root, prompt, **settings)


def test_generation_is_a_function_of_the_seed(finished: RunLayout) -> None:
    first = generated(finished)
    assert first.startswith("the king")
    assert generated(finished) == first
    assert len({generated(finished, seed=seed) for seed in range(4)}) > 1
    assert generated(finished, temperature=0.0, seed=1) == generated(finished, temperature=0.0, seed=2)
    assert generated(finished, top_k=1, seed=3) == generated(finished, temperature=0.0)


def test_generation_takes_the_step_that_it_is_told(finished: RunLayout) -> None:
    texts = {step: generated(finished, step=step, temperature=0.0) for step in (0, 10)}
    assert texts[0] != texts[10]
    assert generated(finished, temperature=0.0) == texts[10]


def test_an_empty_prompt_starts_after_end_of_text(finished: RunLayout) -> None:
    assert generated(finished, prompt="", temperature=0.0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokens": 32}, r"step 10: \d+ prompt tokens and 32 new ones exceed the 32 positions"),
        ({"step": 3}, r"has no checkpoint 3; it has: 0, 4, 8, 10"),
        ({"step": -1}, r"has no checkpoint -1; it has"),
    ],
)
def test_what_cannot_be_generated_is_explained(finished: RunLayout, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        generated(finished, **changes)
