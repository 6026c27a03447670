"""Runs of others: links and names that lead out of the run, and names that would act where they are shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pico_contract import codec
from pico_contract.errors import DamagedError
from pico_contract.layout import MANIFEST, TOKENIZER, RunLayout
from pico_contract.schema import RunManifest
from pico_train.commands import evaluate_run, generate_text, intact_checkpoint, prune, run_table
from pico_train.hub.export import export_checkpoint
from pico_train.hub.model_card import model_readme

SECRET = '{"secret": "of the reader"}'


def generate(run: Path) -> str:
    return generate_text(run, "the", None, 2, 1.0, None, None, 0)


READERS: dict[str, Callable[[Path], Any]] = {
    "export": lambda run: export_checkpoint(run, out=run.parent / "out"),
    "evaluate": lambda run: evaluate_run(run, None, ["perplexity"]),
    "generate": generate,
    "push": lambda run: intact_checkpoint(run, None),
}


def link(layout: RunLayout, secret: Path) -> Path:
    """Put a link to `secret` in the place of the tokenizer, in agreement with the manifest."""
    path = layout.checkpoint(10) / TOKENIZER
    path.unlink()
    path.symlink_to(secret)
    list_in_manifest(layout, TOKENIZER, secret)
    return path


def list_in_manifest(layout: RunLayout, name: str, content: Path) -> None:
    manifest = layout.checkpoint(10) / MANIFEST
    raw = json.loads(manifest.read_text())
    raw.pop("digest")
    raw["files"][name] = {"size": content.stat().st_size, "sha256": codec.sha256_file(content)}
    manifest.write_text(json.dumps(raw))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.json"
    path.write_text(SECRET)
    return path


@pytest.mark.parametrize("reader", READERS)
def test_a_linked_file_is_refused_though_its_hash_is_right(finished: RunLayout, secret: Path, reader: str) -> None:
    path = link(finished, secret)
    with pytest.raises(DamagedError) as caught:
        READERS[reader](finished.root)
    assert str(caught.value).startswith(f"{path} is a link, and links are not followed")
    assert SECRET not in "".join(p.read_text() for p in finished.root.parent.rglob("out/*"))


@pytest.mark.parametrize("name", ["../../../secret.json", "/etc/hostname"])
@pytest.mark.parametrize("reader", READERS)
def test_a_manifest_that_names_a_file_of_elsewhere_is_refused(
    finished: RunLayout, secret: Path, reader: str, name: str
) -> None:
    list_in_manifest(finished, name, secret)
    with pytest.raises(DamagedError, match="only plain names of files in the same directory are allowed"):
        READERS[reader](finished.root)


def test_prune_leaves_a_linked_checkpoint_alone(finished: RunLayout, tmp_path: Path) -> None:
    shutil.move(finished.checkpoint(4), tmp_path / "elsewhere")
    finished.checkpoint(4).symlink_to(tmp_path / "elsewhere")
    assert list(prune(finished.root, ["keep.last=1"]))
    assert (tmp_path / "elsewhere" / MANIFEST).is_file()
    assert finished.checkpoint(4).is_symlink()


BROKEN: dict[str, Callable[[RunLayout], Any]] = {
    "json": lambda layout: layout.manifest.write_text("{"),
    "bytes": lambda layout: layout.manifest.write_bytes(b"\xff\xfe"),
    "deep": lambda layout: layout.manifest.write_text("[" * 100_000),
    "digits": lambda layout: layout.manifest.write_text('{"format": ' + "1" * 5000 + "}"),
    "link": lambda layout: [layout.manifest.rename(layout.root / "x"), layout.manifest.symlink_to("x")],
    "rows": lambda layout: layout.metrics.write_text('{"step": 1, "loss": ' + "9" * 400 + "}\n"),
    "steps": lambda layout: layout.manifest.write_text(
        json.dumps(json.loads(layout.manifest.read_text()) | {"step": 10**300})
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_one_bad_run_does_not_take_the_list_down(finished: RunLayout, kind: str) -> None:
    bad = RunLayout(finished.root.with_name("bad"))
    shutil.copytree(finished.root, bad.root)
    BROKEN[kind](bad)
    _, first, second, *notes = run_table(finished.root.parent)
    assert first.split()[0] == "bad"
    assert second.split()[:2] == ["tiny", "finished"]
    if kind != "rows":
        assert first.split()[1] == "damaged"
        assert len(notes) == 1
        assert str(bad.manifest) in notes[0]


def test_a_name_of_a_run_cannot_control_the_terminal(finished: RunLayout) -> None:
    odd = finished.root.with_name("\x1b[2J\nforged  finished")
    shutil.copytree(finished.root, odd)
    lines = run_table(finished.root.parent)
    assert len(lines) == 3
    assert lines[1].startswith("\\x1b[2J\\nforged  finished  ")


def test_a_model_card_shows_names_as_text(finished: RunLayout) -> None:
    manifest = codec.read_manifest(finished.manifest, RunManifest)
    manifest.name = "x\n# Forged <script>[a](http://b)"
    manifest.method = "m` | ![i](http://c)"
    manifest.data["order"] = "shuffled | y\n| z"
    finished.manifest.write_text(manifest.to_json())
    card = model_readme(finished, "user/name", {})
    assert "<script>" not in card
    assert "](" not in card.partition("## Use")[0].replace("`m    ![i](http://c)`", "")
    assert "# x&#92;n# Forged &#60;script&#62;&#91;a&#93;(http://b)" in card
    assert "| order | shuffled &#124; y&#92;n&#124; z |" in card
