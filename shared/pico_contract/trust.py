"""Consent to run the code that a stored configuration names: one from elsewhere would run the code
of its author."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pico_contract.errors import UserError
from pico_contract.provenance import code_references


def require_trust(raw: Any, source: Path, trust: bool) -> None:
    """Refuse `raw`, read from the stored file `source`, if it names `module:attribute` and `trust`
    was not given.

    Such a module is looked for in the current directory, where an archive may have put it beside
    the run. A configuration that the user names as a file of their own is not asked about.

    Raises:
        UserError: names the file and the code.
    """
    named = code_references(raw)
    if named and not trust:
        raise UserError(
            f"{source} names code that would be imported and run: {', '.join(named)}; read that code, and add --trust"
            " if you trust it"
        )
