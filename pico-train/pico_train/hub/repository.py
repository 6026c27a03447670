"""A branch of a repository on the Hugging Face hub: which checkpoints it holds, and one commit
more.

What was pushed is read from the branch itself, so nothing on disk can disagree with it. The commit
of a checkpoint says the step in its title and the sha256 of the weights below; a tag
`<branch>-step<t>` names it, so that `revision=` in transformers and `hub:` in pico-analyze find it.
Waiting for Retry-After and repeating requests within a call are huggingface_hub's; creating,
tagging and committing it does not repeat, which `pusher` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars
from pico_contract.errors import in_one_line
from pico_contract.layout import MANIFEST, MODEL_WEIGHTS
from pico_contract.schema import CheckpointManifest
from pydantic import Field, field_validator

from pico_train.config import Section

README = "README.md"
_TITLE = re.compile(r"step (\d+)$")
_OF_RUN = re.compile(r"^run created (\S+)$", re.MULTILINE)
_WEIGHTS = re.compile(r"^weights sha256 ([0-9a-f]{64})$", re.MULTILINE)
_PASSING = (408, 409, 412, 425, 429)
"""Refusals (4xx) that may be gone the next time; 412 says that the branch was moved by another."""


class HubConfig(Section):
    """Where checkpoints are pushed while training. The token is huggingface_hub's: `hf auth login`,
    or HF_TOKEN."""

    repo: str | None = None
    """Repository `user/name`; null is off."""
    branch: str | None = Field(None, min_length=1)
    """Branch of this run; null is the run's name."""
    private: bool = True
    """Whether a repository that is made here is private."""
    every: int = Field(1, ge=1)
    """Checkpoints of its multiples are pushed, and the last one; 1 is all of them."""
    wait_minutes: float = Field(10.0, ge=0, le=14)
    """How long a finished run waits for what is still to be pushed."""

    @field_validator("repo")
    @classmethod
    def _named(cls, repo: str | None) -> str | None:
        if repo is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", repo) is None:
            raise ValueError(f'"{repo}" is no repository: write user/name')
        return repo

    def due(self, step: int, last: int) -> bool:
        """Whether the checkpoint of `step`, in a run of `last` updates, is pushed."""
        return step % self.every == 0 or step == last


class RefusedError(Exception):
    """The hub refuses, and trying again would not help."""


class Branch:
    """The branch of one run, `created` then, in a repository.

    Attributes:
        pushed: step -> sha256 of its weights, as the branch says since `look`.
    """

    def __init__(self, repo: str, name: str, private: bool, run: str, created: str) -> None:
        disable_progress_bars()
        self.repo, self.name = repo, name
        self.pushed: dict[int, str] = {}
        self._private, self._run, self._created = private, run, created
        self._api = HfApi()
        self._head: str | None = None

    def tag(self, step: int) -> str:
        """The revision that names the checkpoint of `step`."""
        return f"{self.name}-step{step}"

    def look(self) -> None:
        """Make repository and branch where they are not there, and read what the branch holds; mend
        missing tags.

        Raises:
            RefusedError: another run's checkpoints are there.
        """
        self._api.create_repo(self.repo, private=self._private, exist_ok=True)
        self._api.create_branch(self.repo, branch=self.name, exist_ok=True)
        commits = self._api.list_repo_commits(self.repo, revision=self.name)
        self._head = commits[0].commit_id if commits else None
        tags = {tag.name for tag in self._api.list_repo_refs(self.repo).tags}
        self.pushed = {}
        for commit in commits:  # the newest first
            title, of_run, weights = (_TITLE.search(commit.title), *_said(commit.message))
            if not (title and of_run and weights):
                continue
            if of_run != self._created:
                raise RefusedError(
                    f"branch {self.name} of {self.repo} holds another run (created {of_run}): set hub.branch to another"
                )
            step = int(title[1])
            if step not in self.pushed:
                self.pushed[step] = weights
                if self.tag(step) not in tags:
                    self._api.create_tag(
                        self.repo, tag=self.tag(step), revision=commit.commit_id, exist_ok=True
                    )

    def push(self, directory: Path, manifest: CheckpointManifest, readme: str) -> None:
        """Commit the model files of a checkpoint, without its `state/`, and tag the commit."""
        step, weights = manifest.step, manifest.files[MODEL_WEIGHTS].sha256
        if step in self.pushed:  # trained again from an older step, with another result
            self._api.delete_tag(self.repo, tag=self.tag(step))
        files: list[tuple[str, str | bytes]] = [
            (name, str(directory / name)) for name in [*manifest.files, MANIFEST]
        ]
        said = f"run created {self._created}\nweights sha256 {weights}"
        commit = self._commit(
            [*files, (README, readme.encode())], f"{self._run}: step {step}", said
        )
        self._api.create_tag(self.repo, tag=self.tag(step), revision=commit, exist_ok=True)
        self.pushed[step] = weights

    def push_readme(self, readme: str) -> None:
        """Commit the model card alone; the library leaves out a commit that would change
        nothing."""
        self._commit([(README, readme.encode())], f"{self._run}: model card", "")

    def _commit(
        self, files: Iterable[tuple[str, str | bytes]], title: str, description: str
    ) -> str:
        additions = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in files
        ]
        info = self._api.create_commit(
            self.repo,
            additions,
            commit_message=title,
            commit_description=description,
            revision=self.name,
            parent_commit=self._head,
        )
        self._head = info.oid
        return info.oid


def _said(message: str) -> tuple[str | None, str | None]:
    """(when the run was created, sha256 of the weights), as the description of a commit says."""
    of_run, weights = _OF_RUN.search(message), _WEIGHTS.search(message)
    return of_run and of_run[1], weights and weights[1]


def refusal(error: BaseException, repo: str) -> str | None:
    """The sentence on an answer that trying again would not change; None where it might."""
    if isinstance(error, RefusedError):
        return str(error)
    answer = _answer(error)
    status = answer.status_code if answer is not None else 0
    if not 400 <= status < 500 or status in _PASSING:
        return None
    if status == 401:
        return f"the hub does not know who pushes to {repo} (401): log in with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return f"the hub does not let this token write to {repo} (403): use one that may"
    return f"the hub refuses {repo} ({status}: {error_text(error)})"


def retry_after(error: BaseException) -> float:
    """Seconds that the hub asks to wait, 0 where it says nothing of it."""
    answer = _answer(error)
    said = answer.headers.get("Retry-After", "") if answer is not None else ""
    return float(said) if said.isdecimal() else 0.0


def error_text(error: BaseException) -> str:
    """What an error says; of a wrapped one the cause."""
    return in_one_line(
        error.__cause__ if error.__cause__ is not None and _answer(error) is None else error
    )


def _answer(error: BaseException | None) -> Any:
    """The HTTP answer of the hub behind an error, which the library may have wrapped; None without
    one."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response
        error = error.__cause__
    return None
