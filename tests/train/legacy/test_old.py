"""Files of earlier projects: which project a file is of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...support.earlier_models import converted

Write = Callable[..., Path]


Raw = dict[str, Any]


def test_an_empty_section_is_enough_to_know_the_project(plain: Raw, written: Write) -> None:
    _, ambiguous = converted(written(plain))
    found, _ = converted(written(plain, smlmt={}))
    assert "`smlmt: {}`" in ambiguous
    assert found["method"]["name"] == "maml"
    del plain["training"]["fabric"]
    found, remarks = converted(written(plain, smlmt={}))
    assert found["train"]["micro_batch"] == 3, "that project's default is 4 devices: 48 rows / (4 x 4)"
    assert "4 devices" in remarks
