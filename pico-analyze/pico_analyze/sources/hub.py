"""A series of steps of one model on the Hugging Face hub.

The steps are branches or tags (`hub:NAME@step*`), commits of one branch that earlier Pico code made
(`hub:NAME@BRANCH`), or folders `checkpoints/step_N` of a revision. The files and tensors of a step
are read from the hub's listing and from the first bytes of files. Revisions are pinned to the
commits that they name when the series is opened.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pico_contract.errors import UserError, did_you_mean
from pico_contract.kinds import SPLITS

from pico_analyze.sources.hub_series import HubFiles, HubSeries
from pico_analyze.sources.hub_store import PREFIX, Store
from pico_analyze.sources.model import Model
from pico_analyze.sources.published import (
    Dynamics,
    PublishedRun,
    SavedCommits,
    dynamics_of,
    saved_commits,
    step_folders,
)
from pico_analyze.sources.step_names import (
    StepName,
    no_step_in,
    read_name,
    steps_by_name,
    unit_note,
)

DISK_GIB = 20.0


@dataclass(frozen=True)
class Address:
    """The parts of `hub:REPO/FOLDER@PATTERN`; folder and pattern may be empty."""

    repo: str
    folder: str
    pattern: str

    @classmethod
    def parse(cls, name: str) -> Address:
        """Parse `hub:REPO/FOLDER@PATTERN`; UserError if it names no repository."""
        place, _, pattern = name.removeprefix(PREFIX).partition("@")
        owner, *rest = place.strip("/").split("/")
        if not owner:
            raise UserError(f'"{name}" names no model: write hub:NAME@step*')
        return cls("/".join([owner, *rest[:1]]), "/".join(rest[1:]), pattern)

    def __str__(self) -> str:
        folder = f"/{self.folder}" if self.folder else ""
        pattern = f"@{self.pattern}" if self.pattern else ""
        return f"{PREFIX}{self.repo}{folder}{pattern}"


def open_hub(
    name: str,
    disk_gib: float = DISK_GIB,
    cache: Path | None = None,
    endpoint: str | None = None,
) -> HubSeries:
    """Open the steps of a model on the hub as a series.

    Args:
        name: `hub:NAME@PATTERN`. PATTERN is a glob over branches and tags, by default all whose
            names say a step; or one branch whose commits are steps. `hub:NAME/FOLDER@BRANCH` is a
            run in a folder of the repository.
        disk_gib: GiB that downloaded files may take.
        cache: the folder for them, by default `pico-analyze/` in the hub's own cache; a later call
            uses them again.
        endpoint: the URL of the hub, by default that of `huggingface_hub` (HF_ENDPOINT).

    Raises:
        UserError: huggingface_hub is not installed, no such model or revision, no access, no
            answer, two revisions of one step, or nothing that says a step.
    """
    address = Address.parse(name)
    store = Store(address.repo, disk_gib, cache, endpoint)
    commits = store.revisions()
    pattern = address.pattern or "*"
    chosen = [revision for revision in commits if fnmatch.fnmatchcase(revision, pattern)]
    with_step = [revision for revision in chosen if read_name(revision) is not None]
    # A branch may contain steps as commits or folders, which its name does not show.
    branch = _one_branch(address, chosen, with_step)
    if branch is not None:
        series = _steps_of_branch(store, address, branch, commits[branch])
        if series is not None:
            return series
    if address.folder:
        raise UserError(
            f'{address.repo} has no folder "{address.folder}" with checkpoints/step_N in it'
        )
    if not with_step:
        return _without_steps(store, address, commits, chosen, branch)
    series = _series_of_revisions(store, address, commits, steps_by_name(with_step))
    if address.pattern:
        without = [revision for revision in chosen if revision not in with_step]
        series.notes += [f"left out: {no_step_in(revision)}" for revision in without]
    return series


def _one_branch(
    address: Address, chosen: Sequence[str], with_step: Sequence[str]
) -> str | None:
    """Return the only branch that the address names, or `main` if it names none.

    Without a name, revisions that say a step come before `main`, unless a folder is given.
    """
    if address.pattern:
        return chosen[0] if len(chosen) == 1 else None
    if with_step and not address.folder:
        return None
    return "main" if "main" in chosen else None


def _steps_of_branch(
    store: Store, address: Address, branch: str, commit: str
) -> HubSeries | None:
    """Open the steps that lie within one branch, as commits or in folders; None without any."""
    if not address.folder:
        saved = saved_commits(store.commits(branch))
        if saved:
            return _series_of_commits(store, address, branch, saved)
    runs = step_folders(store.tree(commit), address.folder)
    if not runs:
        return None
    if len(runs) > 1:
        first = [f"{PREFIX}{address.repo}/{name}@{branch}" for name in sorted(runs)[:8]]
        raise UserError(
            f"{address.repo}@{branch} holds several runs in folders; name one of them: {', '.join(first)}"
        )
    ((name, folders),) = runs.items()
    weights: dict[int, Model] = {}
    places: dict[tuple[int, str], tuple[str, str]] = {}
    for step, folder in folders.items():
        files = HubFiles(store, commit, branch, folder)
        weights[step] = Model(files)
        for split in SPLITS:
            places[step, split] = (commit, folder)
    dynamics = dynamics_of(places, store)
    return _published(store, address, name or branch, weights, dynamics)


def _series_of_commits(
    store: Store, address: Address, branch: str, saved: SavedCommits
) -> PublishedRun:
    weights = {
        step: Model(HubFiles(store, commit, f"{branch} (step {step})"))
        for step, commit in saved.weights.items()
    }
    places = {key: (commit, "") for key, commit in saved.dynamics.items()}
    series = _published(store, address, branch, weights, dynamics_of(places, store))
    series.notes += saved.notes
    return series


def _published(
    store: Store, address: Address, name: str, weights: Mapping[int, Model], dynamics: Dynamics
) -> PublishedRun:
    full_name = address.repo if name == "main" else name
    short_name = full_name.rpartition("/")[2]
    series = PublishedRun(short_name, store, weights, dynamics, str(address))
    series.check_listing()
    return series


def _without_steps(
    store: Store,
    address: Address,
    commits: Mapping[str, str],
    chosen: Sequence[str],
    branch: str | None,
) -> HubSeries:
    """Open a single revision whose name says no step, as step 0; UserError if there is none."""
    hint = did_you_mean(address.pattern, commits)
    if not address.pattern:
        raise UserError(
            f"{address.repo} has no revision whose name says a step{hint}; if the commits of a branch are steps, "
            "name that branch: hub:NAME@BRANCH"
        )
    if branch is not None:
        only = {0: StepName(branch, 0, "updates", None, "", "*")}
        series = _series_of_revisions(store, address, commits, only)
        series.notes.append(f"{address} is one model whose name says no step: it is step 0")
        return series
    if chosen:
        raise UserError(
            f"{no_step_in(chosen[0])}; if the commits of a branch are steps, name that branch alone"
        )
    raise UserError(f'{address.repo} has no revision "{address.pattern}"{hint}')


def _series_of_revisions(
    store: Store, address: Address, commits: Mapping[str, str], steps: Mapping[int, StepName]
) -> HubSeries:
    models: dict[int, Model] = {}
    tokens: dict[int, int | None] = {}
    for step, revision in steps.items():
        models[step] = Model(HubFiles(store, commits[revision.name], revision.name))
        tokens[step] = revision.tokens
    series = HubSeries(address.repo.rpartition("/")[2], store, models, tokens, str(address))
    series.notes += unit_note(steps.values())
    series.check_listing()
    return series
