"""Requests to the hub: repeated when it says, to a repository whose name is one."""

from __future__ import annotations

import threading

import pytest
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_train.config import validate
from pico_train.hub.push import push_run
from pico_train.hub.repository import HubConfig

from ...support.hub_server import REPO, Fault, Hub

# The library hands an open file to its HTTP client in a way that the client calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

PATIENT = HubConfig(repo=REPO, wait_minutes=0.2)


def test_retry_after_is_obeyed(hub: Hub, unpushed: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: waits.append(seconds))
    hub.faults.append(Fault("POST .*/commit/", 429, headers={"Retry-After": "7"}))
    push_run(unpushed.root, PATIENT, lambda line: None)
    assert 7.0 in waits


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "a b/c", ""])
def test_a_repository_is_a_user_and_a_name(repo: str) -> None:
    with pytest.raises(UserError, match=f'repo: "{repo}" is not a repository: write user/name'):
        validate(HubConfig, {"repo": repo}, "test.yaml")
