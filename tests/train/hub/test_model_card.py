"""The model card: what it says is what the manifests say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import yaml
from pico_train import train
from pico_train.run import RunConfig

from ...support.hub_server import REPO, Hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

Tiny = Callable[..., RunConfig]


def test_the_model_card_is_true_to_the_manifest(hub: Hub, pushing: RunConfig) -> None:
    train(pushing, quiet=True)
    layout = pushing.layout
    card = hub.branches["tiny"][-1].files["README.md"].decode()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    manifest = json.loads(layout.manifest.read_text())
    (result,) = layout.evaluations.glob("step_00000010/*.json")
    perplexity = json.loads(result.read_text())["metrics"]["perplexity"]
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE))
    for name, value in {**manifest["model"], "batch": None}.items():
        assert name == "batch" or rows[name] == str(value)
    assert rows["parameters, total"] == f"{manifest['parameters']['total']:,}"
    assert rows["fingerprint"] == f"`{manifest['data']['fingerprint']}`"
    assert rows["source"] == "words.txt"
    assert rows["licence"] == "unknown"
    assert rows["optimizer, lr"] == "0.01"
    assert rows["steps"] == "10 of 10 (finished)"
    assert [rows[step] for step in ("0", "4", "8", "10")] == [f"`tiny-step{step}`" for step in (0, 4, 8, 10)]
    assert f"| perplexity | perplexity | {perplexity['value']:.6g} | {perplexity['unit']} | {perplexity['n']} |" in text
    assert f'from_pretrained("{REPO}", revision="tiny-step10")' in text
    assert f'pico-analyze run "hub:{REPO}@tiny-step*"' in text
    assert not {str(layout.root), manifest["sessions"][0]["host"], str(pushing.data.path)} & {
        part for part in re.split(r"[\s`|]+", text) if part
    }
