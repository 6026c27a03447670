"""The place of the analysis of a source, and the source that an analysis is of.

An analysis records what its source was opened from. Two series of one name, or two subsets of one
series, therefore never share a place: the second is written beside the first, and reading finds
that of the source that is named.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pico_contract import strict_yaml
from pico_contract.codec import write_text
from pico_contract.errors import UserError, did_you_mean
from pico_contract.layout import AnalysisLayout, RunLayout

if TYPE_CHECKING:
    from pico_analyze.sources.base import Source

_HUB = "hub:"


def analysis_location(source: Source, name: str, out: Path | None = None) -> AnalysisLayout:
    """Find where an analysis is kept: RUN/analysis/NAME; of what other programs wrote
    ./analysis/SOURCE/NAME.

    With `out` it is OUT/analysis/NAME for either. If the analysis of another source lies there, it
    is NAME-<hash of what the source was opened from>. Nothing is ever written into what another
    program wrote.
    """
    from pico_analyze.sources.run import Run

    if out is None and isinstance(source, Run):
        return source.layout.analysis(name)
    first = usual_location(source, name, out)
    second = AnalysisLayout(first.root.with_name(f"{name}-{_short_hash(origin(source))}"))
    # A second place once used stays in use, even if the first has become free since.
    if second.table.is_file() or owner(first) not in (None, origin(source)):
        return second
    return first


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def usual_location(source: Source, name: str, out: Path | None = None) -> AnalysisLayout:
    """Find where the analysis of a source would lie if no other source of the same name had been
    measured."""
    if out is not None:
        return RunLayout(out).analysis(name)
    return AnalysisLayout(RunLayout(Path()).analysis(source.name).root / name)


def origin(source: Source) -> str:
    """Return what a source was opened from: an absolute path, several, or a name of the hub with
    its pattern."""
    return str(getattr(source, "origin", source.name))


def owner(layout: AnalysisLayout) -> str | None:
    """Return what the source of an analysis was opened from; None if nothing was measured there or
    nothing says it."""
    if not layout.table.is_file():
        return None
    try:
        if layout.source.is_file():
            return str(json.loads(layout.source.read_text(encoding="utf-8"))["origin"])
        return _of_config(strict_yaml.read_mapping(layout.config)["run"])
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None


def _of_config(run: str | list[str]) -> str:
    """Return what an analysis that records no source was opened from, by its configuration."""
    if isinstance(run, str) and run.startswith(_HUB):
        return run
    paths = [run] if isinstance(run, str) else run
    return " ".join(sorted(str(Path(path).resolve()) for path in paths))


def record_owner(layout: AnalysisLayout, source: Source) -> None:
    """Write which source an analysis is of; one inside the run itself needs no record."""
    run = getattr(source, "layout", None)
    if run is not None and run.root in layout.root.parents:
        return
    write_text(
        layout.source,
        json.dumps({"name": source.name, "origin": origin(source)}, indent=2) + "\n",
    )


def find_analysis(source: Source, name: str, out: Path | None = None) -> AnalysisLayout:
    """Find the analysis `name` of a source.

    Raises:
        UserError: there is no such table; names the nearest analysis, or the other source that the
            one there is of.
    """
    layout = analysis_location(source, name, out)
    if layout.table.is_file():
        return layout
    first = usual_location(source, name, out)
    if layout.root != first.root and first.table.is_file():
        raise UserError(
            f"{first.root} is the analysis of {owner(first)} and not of {origin(source)}: run pico-analyze run first"
        )
    known = [
        path.name
        for path in layout.root.parent.glob("*")
        if AnalysisLayout(path).table.is_file()
    ]
    near = did_you_mean(name, known) or ": run pico-analyze run first"
    raise UserError(f'{layout.root.parent} has no analysis "{name}"{near}')


def note_on_location(
    source: Source, name: str, layout: AnalysisLayout, out: Path | None = None
) -> list[str]:
    """Say that the usual place of an analysis is taken by another source, if it is."""
    first = usual_location(source, name, out)
    if layout.root.name == name:
        return []
    return [
        f"{first.root} is the analysis of {owner(first)}: this one is written to {layout.root}"
    ]


def notes_of(run: Source) -> list[str]:
    """Return the notes of a source on data that it leaves out."""
    return list(getattr(run, "notes", ()))
