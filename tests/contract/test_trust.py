"""Consent to code that a stored configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pico_contract.errors import UserError
from pico_contract.trust import require_trust

SOURCE = Path("runs/theirs/config.yaml")


@pytest.mark.parametrize("raw", [{}, {"name": "a:"}, {"time": "1:30"}, {"url": "hub:someone/model"}, {"steps": [1]}])
def test_a_configuration_that_names_no_code_needs_no_consent(raw: dict[str, Any]) -> None:
    require_trust(raw, SOURCE, False)


@pytest.mark.parametrize(
    "raw", [{"method": {"name": "mine:Method"}}, {"metrics": ["per", "a.b:c"]}, {"observe": [{"name": "x:y.z"}]}]
)
def test_code_is_named_and_refused_until_its_reader_agrees(raw: dict[str, Any]) -> None:
    """C4.8: nothing is imported without --trust."""
    with pytest.raises(
        UserError, match=r"^runs/theirs/config\.yaml names code that .*(mine:Method|a\.b:c|x:y\.z).*--trust"
    ):
        require_trust(raw, SOURCE, False)
    require_trust(raw, SOURCE, True)


def test_every_reference_is_named_once() -> None:
    with pytest.raises(UserError, match=r"run: a:b, c:d; read"):
        require_trust({"x": "a:b", "y": ["c:d", "a:b"]}, SOURCE, False)
