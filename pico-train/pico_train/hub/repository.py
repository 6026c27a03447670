"""A branch of a repository on the Hugging Face hub: the checkpoints that it holds, and new commits.

The branch itself records what was pushed, so nothing on disk can disagree with it. The commit of a
checkpoint states the step in its title and the sha256 of the weights in its description. A tag
`<branch>-step<t>` names it, so that `revision=` in transformers and `hub:` in pico-analyze find it.
Within a call, huggingface_hub waits for Retry-After and repeats requests. It does not repeat the
creation of branches, tags and commits; `push.py` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
_STEP = re.compile(r"step (\d+)$")
_CREATED = re.compile(r"^run created (\S+)$", re.MULTILINE)
_WEIGHTS = re.compile(r"^weights sha256 ([0-9a-f]{64})$", re.MULTILINE)
_TEMPORARY = (408, 409, 412, 425, 429)
"""Refusals (4xx) that another attempt may overcome; 412: somebody else has moved the branch."""


class HubConfig(Section):
    """Settings of the pushing of checkpoints while training.

    The token is huggingface_hub's: `hf auth login`, or HF_TOKEN.
    """

    repo: str | None = None
    """Repository `user/name`; null is off."""
    branch: str | None = Field(None, min_length=1)
    """Branch of this run; null is the run's name."""
    private: bool = True
    """Whether a repository that is created here is private."""
    every: int = Field(1, ge=1)
    """Push the checkpoints of multiples of this step, and the last one; 1 pushes all of them."""
    # Below 15 minutes, because nothing renews the run's lock during this wait, and a lock
    # without a heartbeat for that long is taken over.
    wait_minutes: float = Field(10.0, ge=0, le=14)
    """Minutes that a finished run waits for checkpoints that are still to be pushed."""

    @field_validator("repo")
    @classmethod
    def _named(cls, repo: str | None) -> str | None:
        if repo is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", repo) is None:
            raise ValueError(f'"{repo}" is not a repository: write user/name')
        return repo

    def due(self, step: int, last: int) -> bool:
        """Whether the checkpoint of `step`, in a run of `last` updates, is pushed."""
        return step % self.every == 0 or step == last


class RefusedError(Exception):
    """A refusal of the hub that another attempt would not overcome."""


class Branch:
    """The branch of one run in a repository; `created` tells runs of one name apart.

    Attributes:
        pushed: step -> sha256 of its weights, by the last `look` and the pushes since.
    """

    def __init__(self, repo: str, name: str, private: bool, run: str, created: str) -> None:
        disable_progress_bars()  # they would be drawn over the bar of training
        self.repo, self.name = repo, name
        self.pushed: dict[int, str] = {}
        self._private, self._run, self._created = private, run, created
        self._api = HfApi()
        self._head: str | None = None

    def tag(self, step: int) -> str:
        """Return the revision that names the checkpoint of `step`."""
        return f"{self.name}-step{step}"

    def look(self) -> None:
        """Read which checkpoints the branch holds, and create what is missing.

        Missing are perhaps the repository, the branch, or the tag of a checkpoint.

        Raises:
            RefusedError: the branch holds another run's checkpoints.
        """
        self._api.create_repo(self.repo, private=self._private, exist_ok=True)
        self._api.create_branch(self.repo, branch=self.name, exist_ok=True)
        commits = self._api.list_repo_commits(self.repo, revision=self.name)
        self._head = commits[0].commit_id if commits else None
        tags = {tag.name for tag in self._api.list_repo_refs(self.repo).tags}
        self.pushed = {}
        for commit in commits:
            title = _STEP.search(commit.title)
            created, weights = _read_description(commit.message)
            if not (title and created and weights):
                continue
            if created != self._created:
                raise RefusedError(
                    f"branch {self.name} of {self.repo} holds another run (created {created}):"
                    " set hub.branch to another"
                )
            step = int(title[1])
            # The newest commit comes first; older ones of a step that was trained again are past.
            if step in self.pushed:
                continue
            self.pushed[step] = weights
            if self.tag(step) not in tags:
                self._create_tag(step, commit.commit_id)

    def push(self, directory: Path, manifest: CheckpointManifest, readme: str) -> None:
        """Commit the model files of a checkpoint, without its `state/`, and tag the commit."""
        step = manifest.step
        weights = manifest.files[MODEL_WEIGHTS].sha256
        # The step was trained again from an older one, and its tag has to move.
        if step in self.pushed:
            self._api.delete_tag(self.repo, tag=self.tag(step))
        files = _model_files(directory, manifest)
        files[README] = readme.encode()
        title = f"{self._run}: step {step}"
        commit = self._commit(files, title, _write_description(self._created, weights))
        self._create_tag(step, commit)
        self.pushed[step] = weights

    def push_readme(self, readme: str) -> None:
        """Commit the model card alone; huggingface_hub skips a commit that changes nothing."""
        self._commit({README: readme.encode()}, f"{self._run}: model card", "")

    def _create_tag(self, step: int, commit: str) -> None:
        # The tag may exist already if the answer to an earlier attempt was lost.
        self._api.create_tag(self.repo, tag=self.tag(step), revision=commit, exist_ok=True)

    def _commit(self, files: Mapping[str, str | bytes], title: str, description: str) -> str:
        """Commit `files` (name in the repository -> path or bytes), and return the commit's id."""
        additions = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in files.items()
        ]
        info = self._api.create_commit(
            self.repo,
            additions,
            commit_message=title,
            commit_description=description,
            revision=self.name,
            # The hub refuses the commit if somebody else has moved the branch meanwhile.
            parent_commit=self._head,
        )
        self._head = info.oid
        return info.oid


def _model_files(directory: Path, manifest: CheckpointManifest) -> dict[str, str | bytes]:
    """Map the names of a checkpoint's model files to their paths."""
    # The manifest is not in its own list of files, and readers of the hub need it.
    return {name: str(directory / name) for name in [*manifest.files, MANIFEST]}


def _write_description(created: str, weights: str) -> str:
    # `_read_description` reads this text back in later sessions: it must stay readable for ever.
    return f"run created {created}\nweights sha256 {weights}"


def _read_description(message: str) -> tuple[str | None, str | None]:
    """Read a commit's description: (creation time of the run, sha256 of the weights)."""
    created, weights = _CREATED.search(message), _WEIGHTS.search(message)
    return created and created[1], weights and weights[1]


def refusal(error: BaseException, repo: str) -> str | None:
    """Explain an error that another attempt would not overcome; None if it might."""
    if isinstance(error, RefusedError):
        return str(error)
    response = _response(error)
    status = response.status_code if response is not None else 0
    if not 400 <= status < 500 or status in _TEMPORARY:
        return None
    if status == 401:
        return f"the hub does not know who pushes to {repo} (401): log in with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return f"the hub does not let this token write to {repo} (403): use one that may"
    return f"the hub refuses {repo} ({status}: {error_text(error)})"


def retry_after(error: BaseException) -> float:
    """Return the seconds that the hub asks to wait, 0 if it does not ask."""
    response = _response(error)
    seconds = response.headers.get("Retry-After", "") if response is not None else ""
    # The header may also hold a date; then the growing pauses of `push.py` apply.
    return float(seconds) if seconds.isdecimal() else 0.0


def error_text(error: BaseException) -> str:
    """Describe an error in one line, by its cause if the hub has not answered."""
    if error.__cause__ is not None and _response(error) is None:
        return in_one_line(error.__cause__)
    return in_one_line(error)


def _response(error: BaseException | None) -> Any:
    """Find the hub's HTTP response behind an error that the library may have wrapped, or None."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response
        error = error.__cause__
    return None
