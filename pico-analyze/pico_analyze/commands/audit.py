"""pico-analyze audit: the findings of an audit, as lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pico_contract.layout import RunLayout
from pico_contract.terminal import one_line

from pico_analyze.commands.progress import Say, show_progress

if TYPE_CHECKING:
    from pico_analyze.audit.findings import Audit
    from pico_analyze.sources.base import Source


def audit_run(path: Path, hashes: bool, say: Say) -> tuple[list[str], bool]:
    """Audit a run; return a line for each finding, and whether the run is sound.

    Further lines name the files that were not covered, and the last one sums up.

    Raises:
        UserError: no such run.
    """
    from pico_analyze.audit.checks import audit
    from pico_analyze.sources.open import open_source
    from pico_analyze.sources.run import Run, check_run

    if not RunLayout(path).manifest.is_file():
        source = open_source(path)
        if not isinstance(source, Run):
            return _audit_of_series(source)
    with show_progress(say, "read") as progress:
        result = audit(check_run(path).root, hashes, progress)
    return [*_lines(result), _summary(result, hashes)], not result.findings


def _lines(result: Audit) -> list[str]:
    lines = [str(finding) for finding in result.findings]
    # Names in a run may contain line breaks, which would look like further findings.
    lines += [one_line(f"not covered: {path}: {why}") for path, why in result.uncovered.items()]
    return lines


def _audit_of_series(source: Source) -> tuple[list[str], bool]:
    from pico_analyze.audit.series import audit_series

    lines = audit_series(source)
    scope = f"{len(source.steps)} steps, compared with each other by the hashes of their files"
    count = _count_of_findings(len(lines)) if lines else "nothing found"
    return [*lines, f"{count} in {scope}; no manifest says what they should be"], not lines


def _summary(result: Audit, hashes: bool) -> str:
    compared = "every byte was compared with a recorded sha256"
    if not hashes:
        compared = "the size alone was compared"
    scope = (
        f"{result.directories} checkpoints and snapshots, {result.evaluations} evaluations; of"
    )
    scope += f" {len(result.compared)} files {compared}"
    if result.uncovered:
        scope += f"; not covered: {len(result.uncovered)} (named above)"
    count = len(result.findings)
    return f"{_count_of_findings(count)} in {scope}" if count else f"sound: {scope}"


def _count_of_findings(count: int) -> str:
    return f"{count} finding{'s' if count > 1 else ''}"
