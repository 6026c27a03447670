"""The commands of pico-train. Heavy imports wait for a command, so `--help` answers at once."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from pico_contract.terminal import printable

from pico_train.launcher import process_of

if TYPE_CHECKING:
    from pico_train.run.config import RunConfig

STOPPED = 75
"""Exit code of a session that stopped in good order and is worth continuing (EX_TEMPFAIL)."""

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
data_app = typer.Typer(no_args_is_help=True, help="Packed rows: prepare them, show them.")
app.add_typer(data_app, name="data")

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value ...]", help="dotted overrides")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="run directory")]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="import and run the code that the run's configuration names"),
]
ModelPath = Annotated[
    Path, typer.Argument(metavar="RUN|MODEL", help="run, or Hugging Face model directory")
]
Step = Annotated[int | None, typer.Option(help="step; the newest by default")]


@app.command()
def run(config: Config, overrides: Overrides = None, trust: Trust = False) -> None:
    """Train, observe and evaluate; continue an interrupted run of that name.

    Exit code 75: stopped, worth continuing."""
    from pico_train.distributed import leave
    from pico_train.trainer.train import train

    try:
        session = train(_load(config, overrides, trust), source=str(config))
    except KeyboardInterrupt:  # the second Ctrl-C
        _fail(
            "interrupted; what was saved before stays: run the same command again to continue",
            130,
        )
    finally:
        leave()
    # Every process of a run on several devices arrives here.
    if _is_main_process():
        _say(session.message or f"finished at step {session.step}")
    if session.status == "stopped":
        raise typer.Exit(STOPPED)


@app.command()
def check(config: Config, overrides: Overrides = None, trust: Trust = False) -> None:
    """Estimate parameters, tokens, memory and disk of a run, before its first step."""
    from pico_train.run.estimate import estimate

    for line in estimate(_load(config, overrides, trust), str(config)):
        _say(line)


@app.command(name="list")
def list_runs(
    runs: Annotated[Path, typer.Argument(metavar="[RUNS]", help="directory of runs")] = Path(
        "runs"
    ),
) -> None:
    """List runs with their status, step, loss and disk."""
    from pico_train.commands.runs import run_table

    for line in run_table(runs):
        _say(line)


@app.command()
def prune(
    run: RunPath,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only say what would be removed")
    ] = False,
    trust: Trust = False,
) -> None:
    """Apply the run's keep policy, or overrides such as keep.last=3; remove no observation."""
    from pico_train.commands.runs import prune as prune_run

    for line in prune_run(run, overrides or [], dry_run, trust=trust):
        _say(line)


@app.command()
def evaluate(
    run: ModelPath,
    overrides: Overrides = None,
    step: Step = None,
    tasks: Annotated[
        str | None, typer.Option(help="comma-separated; those that are set up by default")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="measure also what was measured before")
    ] = False,
    trust: Trust = False,
) -> None:
    """Evaluate a checkpoint of a run, or a Hugging Face Llama.

    Tasks: perplexity, text_perplexity, paloma, blimp."""
    from pico_train.commands.models import evaluate_any
    from pico_train.log.progress_bars import progress_on_stderr

    names = tasks.split(",") if tasks else None
    # Results go to stdout, where a script may read them.
    with progress_on_stderr() as progress:
        result = evaluate_any(
            run, step, names, overrides or [], again=again, trust=trust, progress=progress
        )
    _say(result)


@app.command()
def generate(
    run: ModelPath,
    prompt: Annotated[str, typer.Option(help="text to continue")] = "",
    step: Step = None,
    tokens: Annotated[int, typer.Option(min=1, help="new tokens")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy")] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="most likely tokens kept; all by default")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="probability mass kept; all by default"),
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the draw")] = 0,
) -> None:
    """Continue a prompt with a checkpoint of a run, or a Hugging Face Llama."""
    from pico_train.commands.generation import Sampling
    from pico_train.commands.models import generate_any

    _say(generate_any(run, step, prompt, Sampling(tokens, temperature, top_k, top_p, seed)))


@app.command()
def export(
    run: RunPath,
    step: Step = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16")] = "fp32",
    out: Annotated[
        Path | None, typer.Option(help="directory to make; NAME-stepN[-DTYPE] here by default")
    ] = None,
) -> None:
    """Copy a checkpoint to a plain Hugging Face model, smaller if asked.

    Tokenizer and model card are included."""
    from pico_train.hub.export import export_checkpoint

    _say(f"model in {export_checkpoint(run, step, out, dtype)}")


@app.command()
def push(
    run: RunPath,
    repo: Annotated[
        str | None, typer.Option(help="user/name on the hub; that of the run by default")
    ] = None,
    trust: Trust = False,
) -> None:
    """Push the checkpoints of a run that the Hugging Face hub lacks, and the model card."""
    from pico_train.checkpoint.load import run_layout
    from pico_train.hub.push import push_run

    run_layout(run)  # refuses a directory without a run, before its configuration is read
    overrides = [f"hub.repo={json.dumps(repo)}"] if repo is not None else []
    steps = push_run(run, _load(run, overrides, trust).hub, _say)
    _say(f"pushed: {', '.join(map(str, steps)) or 'nothing was missing'}")


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="OLD", help="YAML file, or directory of a checkpoint")
    ],
    out: Annotated[
        Path | None, typer.Option(help="file, or for a checkpoint the directory, to make")
    ] = None,
) -> None:
    """Convert YAML or a checkpoint of pico-train 1.x, relora-pico or pico-maml-train to ours.

    Whatever has no equivalent is named."""
    from pico_train.legacy import convert as convert_earlier

    text, remarks = convert_earlier(source, out)
    _say(text.rstrip("\n"))
    for line in remarks:
        typer.echo(printable(line), err=True)


@data_app.command()
def prepare(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="YAML file, or the first override")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Turn text, or a hub data set, into packed rows."""
    from pico_train.config import load, read_yaml
    from pico_train.data.prepare import PrepareConfig
    from pico_train.data.prepare import prepare as prepare_data
    from pico_train.data.sources import expand_short_forms

    path: Path | None = None
    given = list(overrides or [])
    # The configuration is optional, so its place may hold the first override.
    if config is not None and "=" in config:
        given.insert(0, config)
    elif config is not None:
        path = Path(config)
    given = expand_short_forms(given, read_yaml(path) if path is not None else {})
    directory = prepare_data(load(PrepareConfig, path, given), _say)
    _say(f"data in {directory}")


@data_app.command()
def fetch(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG|REPO|DIR", help="YAML file, hub data set or directory"),
    ],
    overrides: Overrides = None,
) -> None:
    """Fetch tokenised rows, which a run then streams while it trains.

    They come from the hub, or from a directory of its layout."""
    from pico_train.config import load
    from pico_train.data.fetch import FetchConfig
    from pico_train.data.fetch import fetch as fetch_data

    path: Path | None = None
    given = list(overrides or [])
    if config.endswith((".yaml", ".yml")):
        path = Path(config)
    else:
        given.insert(0, f"source={json.dumps(config)}")
    directory = fetch_data(load(FetchConfig, path, given), _say)
    _say(f"data in {directory}")


@data_app.command()
def show(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG|RUN|DATA",
            help="YAML file of a run, a run directory, a data directory",
        ),
    ],
    overrides: Overrides = None,
    step: Annotated[int, typer.Option(min=1, help="update whose rows are shown")] = 1,
    rows: Annotated[int, typer.Option(min=1, help="how many of them")] = 4,
    trust: Trust = False,
) -> None:
    """Show the very rows that an update reads, ids and text.

    A data directory is described, and its first rows are shown."""
    from pico_train.commands.data import describe_data, is_data_directory
    from pico_train.commands.runs import rows_of_step

    if is_data_directory(config):
        lines = describe_data(config, overrides or [], rows)
    else:
        lines = rows_of_step(_load(config, overrides, trust), str(config), step, rows)
    for line in lines:
        _say(line)


@data_app.command()
def verify(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="data directory")],
) -> None:
    """Compare every byte of a data directory, and of its shards, with what data.json says."""
    from pico_train.commands.data import verify_all

    for line in verify_all(data):
        _say(line)


def main() -> None:
    """Parse the command line and run the command.

    A user's mistake is one sentence on stderr and exit code 2, a failure one sentence and 1.
    """
    from pico_contract.directories import exit_code_of
    from pico_contract.errors import UserError, sentence_of

    _allow_modules_of_working_directory()
    if not _is_main_process():
        # Every process of a run would repeat the same warning.
        logging.getLogger("pico_train").setLevel(logging.ERROR)
    try:
        # Named, because `python -m pico_train` would call itself `__main__.py`.
        app(prog_name="pico-train")
    except UserError as error:
        _fail(sentence_of(error), UserError.exit_code)
    except OSError as error:
        remedy = "what was saved before stays: mend the cause and run the same command again"
        _fail(f"{sentence_of(error)}; {remedy}", exit_code_of(error))
    except Exception as error:
        from pico_train.distributed import is_peer_error
        from pico_train.errors import NonFiniteError

        # Anything else is a mistake in the program, whose traceback is wanted.
        if not (isinstance(error, NonFiniteError) or is_peer_error(error)):
            raise
        _fail(" ".join(str(error).split()), 1)


def _allow_modules_of_working_directory() -> None:
    """Let `module:attribute` in a configuration name a file of the working directory."""
    # Last in the path, so that a file there never replaces an installed package.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def _load(path: Path, overrides: list[str] | None, trust: bool) -> RunConfig:
    """Load a run's configuration from a YAML file, or from the run directory `path`."""
    from pico_contract.errors import UserError
    from pico_contract.layout import RunLayout

    from pico_train.config import load, read_yaml
    from pico_train.data.sources import expand_short_forms
    from pico_train.run.config import RunConfig
    from pico_train.run.stored_config import is_stored, load_stored

    # The file config.yaml of a run stands for the run itself.
    if is_stored(path):
        return load_stored(RunLayout(path.parent), overrides or [], trust=trust)
    if not path.is_dir():
        return load(RunConfig, path, expand_short_forms(overrides or [], read_yaml(path)))
    # The run may have been moved since its configuration was written.
    runs_dir = f"runs_dir={json.dumps(str(path.resolve().parent))}"
    config = load_stored(RunLayout(path), [runs_dir, *(overrides or [])], trust=trust)
    if config.layout.root.name != path.resolve().name:
        raise UserError(
            f'{path} holds the run "{config.name}": rename the directory to that to go on with it'
        )
    return config


def _is_main_process() -> bool:
    number, _ = process_of()
    return number == 0


def _say(line: object) -> None:
    typer.echo(printable(str(line)))


def _fail(sentence: str, code: int) -> NoReturn:
    number, processes = process_of()
    process = f" (process {number} of {processes})" if number else ""
    typer.echo(printable(f"pico-train{process}: {sentence}"), err=True)
    sys.exit(code)
