"""Measure an observed run, draw it, and say what it holds and what can be computed."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pico_contract.terminal import printable

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)

_SOURCES = (
    "run directory (also of pico-train 1.x), directory or quoted glob of model folders,"
    " hub:NAME@step*, hub:NAME@BRANCH"
)
SourcePath = Annotated[Path, typer.Argument(metavar="RUN", help=_SOURCES)]
Name = Annotated[str, typer.Option(help="of the analysis: analysis/NAME in the run")]
Out = Annotated[
    Path | None,
    typer.Option(help="directory that holds analysis/NAME, where it is not the run"),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value ...]", help="dotted overrides")
]


@app.command()
def run(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN|CONFIG", help=f"{_SOURCES}; or a YAML file that names one"),
    ],
    overrides: Overrides = None,
    of: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="RUN", help="the run, in place of the one that CONFIG names"
        ),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="import and run the code that a stored analysis/<name>/config.yaml names",
        ),
    ] = False,
) -> None:
    """Measure a run: table, figures and report in analysis/<name>/ of the run. Without a
    configuration: everything.

    Models that other programs wrote are measured into ./analysis/<source>/<name>/; out=DIR puts
    either into DIR/analysis/<name>/. A configuration of pico-analyze 1.x works with --run RUN.
    """
    from pico_analyze.commands.analyze import run_analysis
    from pico_analyze.config.analysis import check_trust, load

    say = partial(_say, err=True)
    check_trust(source, trust)
    for path in run_analysis(load(source, overrides or [], of, say), str(source), say):
        _say(path)


@app.command()
def plot(
    run: SourcePath,
    name: Name = "default",
    metric: Annotated[
        str | None, typer.Option(help="comma-separated; a few telling ones by default")
    ] = None,
    heads: Annotated[
        bool, typer.Option("--heads", help="draw circuits head by head as well")
    ] = False,
    format: Annotated[str, typer.Option(help="comma-separated: png, svg, pdf")] = "png",
    out: Out = None,
    spectra: Annotated[
        bool,
        typer.Option("--spectra", help="also singular values over steps, of a layer's weights"),
    ] = False,
    distributions: Annotated[
        bool,
        typer.Option("--distributions", help="also how a layer's entries are distributed"),
    ] = False,
) -> None:
    """Draw figures from the table that `run` wrote, without measuring again."""
    from pico_analyze.commands.plot import plot_run

    metrics, formats = metric.split(",") if metric else None, format.split(",")
    for path in plot_run(run, name, metrics, heads, formats, out, spectra, distributions):
        _say(path)


@app.command()
def report(run: SourcePath, name: Name = "default", out: Out = None) -> None:
    """Write report.html from the table that `run` wrote: one file that opens offline, on a phone
    and on paper."""
    from pico_analyze.commands.analyze import report_run

    _say(report_run(run, name, out))


@app.command()
def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN ...]", help="measured runs, each an arm; the first is the baseline"
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=RUN,RUN", help="an arm of runs that differ in their seeds; repeat"
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="of the analysis that each run has")] = "default",
    metric: Annotated[
        str | None, typer.Option(help="comma-separated, to draw; a few telling ones by default")
    ] = None,
    format: Annotated[str, typer.Option(help="comma-separated: png, svg, pdf")] = "png",
    out: Annotated[Path, typer.Option(help="directory for table, figures and report")] = Path(
        "comparison"
    ),
    seed: Annotated[
        int, typer.Option(help="of the bootstrap, and of permutations where they are sampled")
    ] = 0,
    interval: Annotated[
        str,
        typer.Option(
            help="student: over pairs of equal seeds, else Welch's; bootstrap: from 10 runs an arm on"
        ),
    ] = "student",
) -> None:
    """Compare arms by the tables that `run` wrote: paired by step, with intervals over seeds.

    The notes come first: every difference between the arms beyond the intended one, from
    config.yaml and run.json. An interval needs at least two runs in either arm (three or more are
    better); with one, none is claimed.
    """
    from pico_analyze.commands.compare import compare_runs, parse_groups

    chosen = metric.split(",") if metric else None
    groups = parse_groups(group or [])
    paths, notes = compare_runs(
        runs or [], groups, out, name, chosen, format.split(","), seed, interval
    )
    for note in notes:
        _say(f"note: {note}", err=True)
    for path in paths:
        _say(path)


@app.command()
def audit(
    run: SourcePath,
    hashes: Annotated[
        bool,
        typer.Option(
            help="read every byte: hashes, duplicated steps, jumps of weights; without, sizes alone"
        ),
    ] = True,
) -> None:
    """Check a run's integrity: damage, missing and duplicated steps, gaps in the log, jumps of the
    weights.

    Every file is compared with a recorded hash or named as not covered. A series of models is
    checked for duplicated steps.

    Exit code 0 if nothing was found, 1 with findings, each a line that names the file at fault.
    """
    from pico_analyze.commands.audit import audit_run

    lines, sound = audit_run(run, hashes, partial(_say, err=True))
    for line in lines:
        _say(line)
    if not sound:
        raise typer.Exit(1)


@app.command()
def inspect(run: SourcePath) -> None:
    """List the steps, kinds, splits and modules of a run, and what is damaged."""
    from pico_analyze.commands.inspect import holdings

    for line in holdings(run):
        _say(line)


@app.command()
def metrics() -> None:
    """List every metric that can be computed: name, arity, kinds, unit, range and source."""
    from pico_analyze.commands.inspect import known_metrics

    for line in known_metrics():
        _say(line)


def main() -> None:
    """Parse and run the command line.

    A user's mistake is one sentence on stderr and exit 2, a failure of the system one and exit 1.
    """
    from pico_contract.directories import exit_code_of
    from pico_contract.errors import UserError, sentence_of

    _see_users_modules()
    try:
        app(prog_name="pico-analyze")
    except UserError as error:
        _fail(sentence_of(error), UserError.exit_code)
    except OSError as error:
        _fail(sentence_of(error), exit_code_of(error))


def _see_users_modules() -> None:
    """Let a metric named `module:attribute` lie in the directory that the command is run from.

    It comes last, so that a file there never takes the place of an installed package.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def _say(line: object, err: bool = False) -> None:
    """Print a line, with control characters in it made harmless for the terminal."""
    typer.echo(printable(str(line)), err=err)


def _fail(sentence: str, code: int) -> None:
    _say(f"pico-analyze: {sentence}", err=True)
    sys.exit(code)
