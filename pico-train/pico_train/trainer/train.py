"""The function `train(config)`: one session of a run, as often as wanted in a process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pico_train.config import load
from pico_train.run.build import build
from pico_train.run.config import RunConfig
from pico_train.trainer.loop import fit
from pico_train.trainer.resume import open_session
from pico_train.trainer.session import SessionResult


def train(
    config: RunConfig | Path | str,
    overrides: Sequence[str] = (),
    *,
    source: str = "the configuration",
    quiet: bool = False,
) -> SessionResult:
    """Train the run that `config` describes, continuing it where it was interrupted.

    `config` is a `RunConfig`, or the path of a YAML file to which dotted `overrides` are applied.
    `quiet` silences the console; metrics.jsonl is always written.

    Raises:
        UserError: a mistake in the configuration, the data or the run directory.
        NonFiniteError: the loss or a gradient became non-finite, before the optimizer stepped.
        OSError: the disk is full or failing; what was saved before stays.
    """
    if not isinstance(config, RunConfig):
        source, config = str(config), load(RunConfig, Path(config), overrides)
    job = build(config, source)
    try:
        with open_session(job, quiet) as session:
            return session if isinstance(session, SessionResult) else fit(session)
    finally:
        job.runtime.close()
