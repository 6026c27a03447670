"""Pushing to the hub, against a stand-in on this machine: in order, once, whatever the network does."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable

import pytest
from pico_analyze.sources.hub import open_hub
from pico_contract.errors import UserError
from pico_contract.layout import RunLayout
from pico_train import train
from pico_train.hub import push
from pico_train.hub.model_card import model_readme
from pico_train.hub.push import push_run
from pico_train.hub.repository import HubConfig
from pico_train.run import RunConfig

from ...support.hub_server import REPO, Fault, Hub
from .conftest import TOKEN

# The library hands an open file to its HTTP client in a way that the client calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

Tiny = Callable[..., RunConfig]
ALL = ["tiny: step 0", "tiny: step 4", "tiny: step 8", "tiny: step 10"]


PATIENT = HubConfig(repo=REPO, wait_minutes=0.2)


def model_files(layout: RunLayout, step: int) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in layout.checkpoint(step).iterdir() if path.is_file()}


def check_all(hub: Hub, layout: RunLayout) -> None:
    """Every checkpoint came over once, in order, byte for byte, without its state."""
    titles = hub.titles("tiny")
    assert [title for title in titles if title != "tiny: model card"] == ALL
    assert sorted(hub.tags) == ["tiny-step0", "tiny-step10", "tiny-step4", "tiny-step8"]
    for step in (0, 4, 8, 10):
        files = dict(hub.at(f"tiny-step{step}"))
        assert files.pop("README.md").startswith(b"---\n")
        assert files == model_files(layout, step)


def test_every_checkpoint_is_a_commit_and_a_tag(
    hub: Hub, pushing: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(pushing).status == "finished"
    check_all(hub, pushing.layout)
    assert hub.private is True
    # With the last checkpoint or after it, as the last evaluation was sooner than the writing of it, or later.
    card = model_readme(pushing.layout, REPO, {step: f"tiny-step{step}" for step in (0, 4, 8, 10)})
    assert hub.branches["tiny"][-1].files["README.md"] == card.encode()
    assert "perplexity" in card
    assert hub.authorizations == {f"Bearer {TOKEN}", None}  # none is sent to where large files go
    said = capsys.readouterr()
    kept = "".join(path.read_text() for path in pushing.layout.root.glob("*.*") if path.suffix != ".safetensors")
    assert TOKEN not in said.out + said.err + kept
    assert list(open_hub(f"hub:{REPO}@tiny-step*", endpoint=hub.endpoint).steps) == [0, 4, 8, 10]


def test_every_limits_what_is_pushed(hub: Hub, tiny: Tiny) -> None:
    train(tiny(**{"hub.repo": REPO, "hub.every": 8, "hub.branch": "main", "snapshot.every": 0}), quiet=True)
    assert hub.titles("main")[:3] == ["tiny: step 0", "tiny: step 8", "tiny: step 10"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT /blob", 429, headers={"Retry-After": "0"}),
        Fault("POST .*/commit/", 429, headers={"Retry-After": "0"}),
        Fault("POST .*/commit/", 503, times=2),
        Fault("POST .*/preupload/", 500),
        Fault("POST /api/repos/create", 500, times=2),
        Fault("PUT /blob"),
        Fault("POST .*/commit/"),
        Fault("POST .*/commit/", acts=True),
        Fault("POST .*/tag/"),
        Fault("POST .*/tag/", 500, acts=True),
    ],
    ids=lambda fault: f"{fault.request} {fault.status or 'dropped'}{' after acting' if fault.acts else ''}",
)
def test_what_passes_is_tried_again_and_nothing_comes_twice(hub: Hub, unpushed: RunLayout, fault: Fault) -> None:
    hub.faults.append(fault)
    assert push_run(unpushed.root, PATIENT, lambda line: None)
    assert fault.times == 0
    check_all(hub, unpushed)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(403, "does not let this token write to somebody/tiny"), (401, "log in with `hf auth login`, or set HF_TOKEN")],
)
def test_a_refusal_ends_pushing_and_not_training(
    hub: Hub, pushing: RunConfig, status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = pushing.model_copy(update={"name": "plain", "hub": HubConfig()})
    train(plain, quiet=True)
    hub.faults.append(Fault("POST .*/commit/", status, times=1000))
    assert train(pushing).status == "finished"
    assert sum("/commit/" in request for request in hub.requests) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if sentence in line]
    assert len(said) == 2
    assert said[0].startswith("pushing to the hub has ended: ")
    assert said[1].startswith("checkpoints not pushed: 0, 4, 8, 10; ")
    weights = [layout.checkpoint(10) / "model.safetensors" for layout in (plain.layout, pushing.layout)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    with pytest.raises(UserError, match=re.escape(sentence)):
        push_run(pushing.layout.root, pushing.hub, lambda line: None)
    hub.faults.clear()
    assert push_run(pushing.layout.root, pushing.hub, lambda line: None) == [0, 4, 8, 10]
    assert push_run(pushing.layout.root, pushing.hub, lambda line: None) == []
    check_all(hub, pushing.layout)


def test_training_does_not_wait_for_a_hub_that_does_not_answer(
    hub: Hub, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.gate.clear()
    config = tiny(**{"hub.repo": REPO, "hub.wait_minutes": 0.005, "snapshot.every": 0})
    begun = time.monotonic()
    assert train(config).status == "finished"
    assert time.monotonic() - begun < 20
    assert "checkpoints not pushed: 0, 4, 8, 10; there was no time for more." in capsys.readouterr().out


def test_the_next_start_pushes_what_a_killed_one_left(hub: Hub, pushing: RunConfig) -> None:
    """Also of a run that had finished training; a commit whose tag was not made gets it."""
    train(pushing.model_copy(update={"hub": HubConfig()}), quiet=True)
    layout = pushing.layout
    shutil.rmtree(layout.checkpoint(10))
    layout.manifest.write_text(json.dumps({**json.loads(layout.manifest.read_text()), "status": "running"}))
    assert train(pushing, quiet=True).status == "finished"
    check_all(hub, layout)
    del hub.branches["tiny"][4:], hub.tags["tiny-step10"], hub.tags["tiny-step4"]
    assert train(pushing, quiet=True).message == f"pushed to {REPO}: 10"
    check_all(hub, layout)
    assert "there is nothing to do" in train(pushing, quiet=True).message


def test_a_step_that_was_trained_anew_is_pushed_anew(hub: Hub, pushing: RunConfig) -> None:
    train(pushing, quiet=True)
    layout = pushing.layout
    shutil.copyfile(layout.checkpoint(4) / "model.safetensors", layout.checkpoint(8) / "model.safetensors")
    path = layout.checkpoint(8) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["model.safetensors"] = json.loads((layout.checkpoint(4) / "manifest.json").read_text())["files"][
        "model.safetensors"
    ]
    manifest.pop("digest")  # as of a version that stated none
    path.write_text(json.dumps(manifest))
    assert push_run(layout.root, pushing.hub, lambda line: None) == [8]
    assert hub.at("tiny-step8")["model.safetensors"] == hub.at("tiny-step4")["model.safetensors"]


def test_a_checkpoint_that_is_gone_or_damaged_is_reported_as_skipped(hub: Hub, pushing: RunConfig) -> None:
    train(pushing.model_copy(update={"hub": HubConfig()}), quiet=True)
    layout = pushing.layout
    raw = bytearray((layout.checkpoint(4) / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (layout.checkpoint(4) / "model.safetensors").write_bytes(raw)
    uploader = push._uploader(
        layout, pushing.hub, push.codec.read_manifest(layout.manifest, push.RunManifest), (
            said := []
        ).append
    )  # fmt: skip
    uploader.note_checkpoints()
    shutil.rmtree(layout.checkpoint(8))
    uploader.deliver(1.0)
    assert uploader.delivered == [0, 10]
    assert re.match(r"checkpoint 4 is not pushed: .*sha256", said[0])
    assert said[1] == "checkpoint 8 is not pushed: it was removed before its turn came"


def test_another_run_on_the_branch_is_not_written_over(hub: Hub, pushing: RunConfig) -> None:
    train(pushing, quiet=True)
    before = hub.titles("tiny")
    path = pushing.layout.manifest
    path.write_text(json.dumps({**json.loads(path.read_text()), "created": "2001-01-01T00:00:00+00:00"}))
    with pytest.raises(UserError, match=r"branch tiny of somebody/tiny holds another run .*: set hub\.branch"):
        push_run(pushing.layout.root, pushing.hub, lambda line: None)
    assert hub.titles("tiny") == before


def test_a_run_that_names_no_repository_is_asked_for_one(tiny: Tiny) -> None:
    config = tiny(**{"snapshot.every": 0, "train.steps": 2})
    train(config, quiet=True)
    with pytest.raises(UserError, match="names no repository: give --repo user/name"):
        push_run(config.layout.root, config.hub, print)
