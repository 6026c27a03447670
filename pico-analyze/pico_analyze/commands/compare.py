"""pico-analyze compare: read the arms, and write their differences as table, figures and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pico_contract.codec import write_text
from pico_contract.directories import check_directory
from pico_contract.errors import UserError
from pico_contract.layout import AnalysisLayout

from pico_analyze.commands.location import find_analysis

if TYPE_CHECKING:
    from pico_analyze.compare.arms import Arm


def parse_groups(groups: Sequence[str]) -> dict[str, list[Path]]:
    """Parse groups `NAME=RUN,RUN` into name -> paths, in the order given.

    Raises:
        UserError: no name, no runs, or a name twice.
    """
    found: dict[str, list[Path]] = {}
    for group in groups:
        name, _, paths = group.partition("=")
        if not (name and paths.strip(",")):
            raise UserError(
                f'"{group}" is not a group: write NAME=RUN,RUN with the runs that differ in their seeds'
            )
        if name in found:
            raise UserError(f'the group "{name}" is given twice: name all of its runs at once')
        found[name] = [Path(path) for path in paths.split(",") if path]
    return found


def open_arms(
    runs: Sequence[Path], groups: Mapping[str, Sequence[Path]], name: str
) -> list[Arm]:
    """Open each of `runs` as an arm by itself, then the groups, with their tables of `name`.

    Raises:
        UserError: a run that does not exist, has no such analysis, or is named twice.
    """
    from pico_analyze import table
    from pico_analyze.compare.arms import Arm
    from pico_analyze.sources.open import open_source

    seen: set[Path] = set()
    arms = []
    alone = [(str(path), [path]) for path in runs]
    for label, paths in [*alone, *groups.items()]:
        sources = [open_source(path) for path in paths]
        layouts = [find_analysis(source, name) for source in sources]
        for path, layout in zip(paths, layouts, strict=True):
            # The same run may be named by two paths, by a link for instance.
            table_path = layout.table.resolve()
            if table_path in seen:
                raise UserError(f"{path} is named twice: a run cannot be compared with itself")
            seen.add(table_path)
        arms.append(Arm(label, sources, [table.read(layout.table) for layout in layouts]))
    return [*_short_names(arms[: len(alone)]), *arms[len(alone) :]]


def _short_names(arms: list[Arm]) -> list[Arm]:
    """Name arms of one run each after their runs; keep their paths if two names are equal."""
    from dataclasses import replace

    names = [arm.runs[0].name for arm in arms]
    if len(set(names)) < len(names):
        return arms
    return [replace(arm, name=name) for arm, name in zip(arms, names, strict=True)]


def compare_runs(
    runs: Sequence[Path],
    groups: Mapping[str, Sequence[Path]],
    out: Path,
    name: str = "default",
    metrics: Sequence[str] | None = None,
    formats: Sequence[str] = ("png",),
    seed: int = 0,
    interval: str = "student",
) -> tuple[list[Path], list[str]]:
    """Compare, write table, figures and report into `out`, and return their paths and the notes."""
    from pico_analyze import compare
    from pico_analyze.compare import notes as compare_notes
    from pico_analyze.plot import arms as plot_arms
    from pico_analyze.plot import panels
    from pico_analyze.report import arms as report_arms

    check_directory(out)
    arms = open_arms(runs, groups, name)
    differences = compare.compare(arms, seed=seed, interval=interval)
    drawn = report_arms.plotted(arms, metrics)
    layout = AnalysisLayout(out)
    compare.write(differences, layout.table, layout.table_csv)
    written = [layout.table, layout.table_csv]
    for shown in drawn:
        figures = {f"{shown.stem}_overlay": plot_arms.overlay(shown)}
        for index, arm in enumerate(arms[1:], start=1):
            rows = report_arms.select(report_arms.by_step(differences, arm.name), shown)
            if not rows.rows.empty:
                figures[f"{shown.stem}_difference_{index}"] = plot_arms.difference_map(rows)
        for stem, figure in figures.items():
            written += [
                panels.save(figure, layout.figures / f"{stem}.{ending}") for ending in formats
            ]
    write_text(layout.report, report_arms.render(arms, differences, metrics))
    return [*written, layout.report], compare_notes.notes(arms, differences)
