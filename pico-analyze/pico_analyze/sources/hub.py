"""A series of steps of one model on the Hugging Face hub.

The steps are branches or tags (`hub:NAME@step*`), commits of one branch that earlier Pico code made
(`hub:NAME@BRANCH`), or folders `checkpoints/step_N` of a revision. Which files and tensors a step
has is read from the hub's listing and from the first bytes of files. Revisions are pinned to the
commits that they name when the series is opened.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pico_contract.errors import UserError, did_you_mean

from pico_analyze.sources.base import SPLITS
from pico_analyze.sources.hub_series import HubFiles, HubSeries
from pico_analyze.sources.hub_store import PREFIX, Store
from pico_analyze.sources.model import Model
from pico_analyze.sources.published import (
    Dynamics,
    PublishedRun,
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
    """What `hub:REPO/FOLDER@PATTERN` names; folder and pattern may be empty."""

    repo: str
    folder: str
    pattern: str

    @classmethod
    def parse(cls, name: str) -> Address:
        """Read it; UserError if it names no repository."""
        place, _, pattern = name.removeprefix(PREFIX).partition("@")
        owner, *rest = place.strip("/").split("/")
        if not owner:
            raise UserError(f'"{name}" names no model: write hub:NAME@step*')
        return cls("/".join([owner, *rest[:1]]), "/".join(rest[1:]), pattern)

    def __str__(self) -> str:
        folder = f"/{self.folder}" if self.folder else ""
        return f"{PREFIX}{self.repo}{folder}" + (f"@{self.pattern}" if self.pattern else "")


def open_hub(
    name: str, disk_gib: float = DISK_GIB, cache: Path | None = None, endpoint: str | None = None
) -> HubSeries:
    """The steps of a model on the hub as a series.

    Args:
        name: `hub:NAME@PATTERN`. PATTERN is a glob over branches and tags, by default all whose
            names say a step; or one branch whose commits are steps. `hub:NAME/FOLDER@BRANCH` is a
            run in a folder of the repository.
        disk_gib: GiB that downloaded files may take.
        cache: where they are kept, `pico-analyze/` in the hub's own cache by default; a later call
            finds them there.
        endpoint: of the hub; that of `huggingface_hub` (HF_ENDPOINT) by default.

    Raises:
        UserError: huggingface_hub is not installed, no such model or revision, no access, no
            answer, two revisions of one step, or nothing that says a step.
    """
    address = Address.parse(name)
    store = Store(address.repo, disk_gib, cache, endpoint)
    commits = store.revisions()
    chosen = [
        revision for revision in commits if fnmatch.fnmatchcase(revision, address.pattern or "*")
    ]
    named = {revision for revision in chosen if read_name(revision) is not None}
    branch = _one_branch(address, chosen, named)
    if branch is not None:
        series = _steps_of_branch(store, address, branch, commits[branch])
        if series is not None:
            return series
    if address.folder:
        raise UserError(
            f'{address.repo} has no folder "{address.folder}" with checkpoints/step_N in it'
        )
    if not named:
        return _without_steps(store, address, commits, chosen, branch)
    series = _of_revisions(
        store, address, commits, steps_by_name([one for one in chosen if one in named])
    )
    if address.pattern:
        series.notes += [f"left out: {no_step_in(one)}" for one in chosen if one not in named]
    return series


def _one_branch(address: Address, chosen: Sequence[str], named: set[str]) -> str | None:
    """The one branch that is named, or `main` if nothing is named and no revision says a step."""
    if address.pattern:
        return chosen[0] if len(chosen) == 1 else None
    return "main" if "main" in chosen and (address.folder or not named) else None


def _steps_of_branch(store: Store, address: Address, branch: str, commit: str) -> HubSeries | None:
    """The steps that lie within one branch, as commits or in folders; None if there are none."""
    if not address.folder and (saved := saved_commits(store.commits(branch))):
        weights = {
            step: Model(HubFiles(store, id_, f"{branch} (step {step})"))
            for step, id_ in saved.weights.items()
        }
        dynamics = dynamics_of({key: (id_, "") for key, id_ in saved.dynamics.items()}, store)
        series = _published(store, address, branch, weights, dynamics)
        series.notes += saved.notes
        return series
    folders = step_folders(store.tree(commit), address.folder)
    if not folders:
        return None
    if len(folders) > 1:
        listed = ", ".join(
            f"{PREFIX}{address.repo}/{name}@{branch}" for name in sorted(folders)[:8]
        )
        raise UserError(
            f"{address.repo}@{branch} holds several runs in folders; name one of them: {listed}"
        )
    ((name, steps),) = folders.items()
    weights = {
        step: Model(HubFiles(store, commit, branch, folder)) for step, folder in steps.items()
    }
    places = {(step, split): (commit, folder) for step, folder in steps.items() for split in SPLITS}
    return _published(store, address, name or branch, weights, dynamics_of(places, store))


def _published(
    store: Store, address: Address, name: str, weights: Mapping[int, Model], dynamics: Dynamics
) -> PublishedRun:
    called = address.repo.rpartition("/")[2] if name == "main" else name.rpartition("/")[2]
    series = PublishedRun(called, store, weights, dynamics, str(address))
    series.check_listing()
    return series


def _without_steps(
    store: Store,
    address: Address,
    commits: Mapping[str, str],
    chosen: Sequence[str],
    branch: str | None,
) -> HubSeries:
    """One revision that says no step is step 0 of a series of one; anything else is refused with
    what there is."""
    if address.pattern and branch is not None:
        only = {0: StepName(branch, 0, "updates", None, "", "*")}
        series = _of_revisions(store, address, commits, only)
        series.notes.append(f"{address} is one model whose name says no step: it is step 0")
        return series
    if address.pattern and chosen:
        raise UserError(
            f"{no_step_in(chosen[0])}; if the commits of a branch are steps, name that branch alone"
        )
    there = did_you_mean(address.pattern, commits)
    what = f'revision "{address.pattern}"' if address.pattern else "revision whose name says a step"
    hint = (
        ""
        if address.pattern
        else "; if the commits of a branch are steps, name that branch: hub:NAME@BRANCH"
    )
    raise UserError(f"{address.repo} has no {what}{there}{hint}")


def _of_revisions(
    store: Store, address: Address, commits: Mapping[str, str], steps: Mapping[int, StepName]
) -> HubSeries:
    models = {
        step: Model(HubFiles(store, commits[one.name], one.name)) for step, one in steps.items()
    }
    tokens = {step: one.tokens for step, one in steps.items()}
    series = HubSeries(address.repo.rpartition("/")[2], store, models, tokens, str(address))
    series.notes += unit_note(steps.values())
    series.check_listing()
    return series
