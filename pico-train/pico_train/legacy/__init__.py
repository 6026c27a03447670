"""Conversion of files of earlier Pico projects: pico-train 1.x, relora-pico, pico-maml-train."""

from __future__ import annotations

from pathlib import Path

from pico_contract import codec
from pico_contract.errors import UserError


def convert(source: Path, out: Path | None) -> tuple[str, list[str]]:
    """Convert a configuration file or a checkpoint's directory; return (text to print, remarks).

    A configuration is written to `out` if that is given, and is the text otherwise. A checkpoint
    needs `out`.

    Raises:
        UserError: as `convert_config` and `convert_weights`; `out` is missing for a checkpoint, or
            exists.
    """
    if source.is_dir():
        from pico_train.legacy.weights import convert_weights

        if out is None:
            raise UserError(f"{source} is a checkpoint: name the directory to make with --out")
        remarks = convert_weights(source, out)
        return f"checkpoint in {out}", remarks
    from pico_train.legacy.config import convert_config

    text, remarks = convert_config(source)
    if out is None:
        return text, remarks
    if out.exists():
        raise UserError(f"{out} exists already; choose another --out")
    codec.write_text(out, text)
    return f"configuration in {out}", remarks
