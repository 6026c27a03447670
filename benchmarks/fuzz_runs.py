"""Damage copies of a tiny run in every way we know; every command that reads one must end with a sentence.

    python benchmarks/fuzz_runs.py                 2,000 mutations in process
    python benchmarks/fuzz_runs.py --commands 50   50 of each kind by command, in processes of their own

Equal seeds give equal mutations. The exit code is 1 if a command ends with another code than 0, 1 or 2.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from fuzzing import Tally, as_command, in_process
from pico_contract.codec import sha256_file
from pico_contract.layout import MANIFEST
from tiny_run import make_run

VALUES: list[Any] = [None, True, -1, 0, 1 << 70, 10**5000, 1e308, float("nan"), float("inf"), "", "../../x", "\x1b[2J"]
VALUES += [[], {}, [[]], {"a": {}}, "x" * 100_000, "\ud800", "a:b", "=1+1", "nul\0", ["a", 1, None]]
NAMES = [
    "\x1b[31mred",
    "line\nbreak",
    "=cmd|x",
    "-rf",
    " ",
    "x" * 240,
    "..hidden",
    "step_00000099",
    "step_1",
    "caf\u00e9",
]
TARGETS = ["/etc/passwd", "/nowhere", "/dev/zero", "/", "..", "."]

COMMANDS: dict[str, tuple[str, ...]] = {
    "list": ("pico-train", "list", "runs"),
    "prune": ("pico-train", "prune", "runs/tiny", "--dry-run", "keep.last=1"),
    "evaluate": ("pico-train", "evaluate", "runs/tiny", "--again"),
    "generate": ("pico-train", "generate", "runs/tiny", "--tokens", "2"),
    "export": ("pico-train", "export", "runs/tiny", "--out", "exported"),
    "show": ("pico-train", "data", "show", "runs/tiny"),
    "resume": ("pico-train", "run", "own.yaml"),
    "inspect": ("pico-analyze", "inspect", "runs/tiny"),
    "audit": ("pico-analyze", "audit", "runs/tiny"),
    "sizes": ("pico-analyze", "audit", "runs/tiny", "--no-hashes"),
    "measure": ("pico-analyze", "run", "runs/tiny", "metrics=[per,cosine]", "figures.metrics=[]", "name=again"),
    "report": ("pico-analyze", "report", "runs/tiny", "--name", "small"),
    "compare": ("pico-analyze", "compare", "runs/tiny", "runs/other", "--name", "small", "--metric", "per"),
}


AUDITS = ("audit", "sizes")


def make_base(base: Path) -> None:
    """A run whose last checkpoint is gone, so that it would be continued, analysed; and another beside it."""
    layout = make_run(base, steps=4)
    own = yaml.safe_load(layout.config.read_text()) | {"runs_dir": "runs", "data": {"path": "data"}}
    (base / "own.yaml").write_text(yaml.safe_dump(own))
    measure = ("run", str(layout.root), "metrics=[per,cosine]", "figures.metrics=[]", "name=small")
    assert in_process("pico-analyze", measure).problem is None
    shutil.copytree(layout.root, layout.root.with_name("other"))
    shutil.rmtree(layout.checkpoint(4))


def files_of(run: Path, draw: random.Random, pattern: str = "*") -> Path:
    """One file of the run; those in its top directory are drawn as often as all others."""
    found = sorted(path for path in run.rglob(pattern) if path.is_file() and not path.is_symlink())
    top = [path for path in found if path.parent == run]
    return draw.choice(top if top and draw.random() < 0.4 else found)


def change_bytes(run: Path, draw: random.Random) -> None:
    """Flip, cut, insert, empty or double the bytes of a file."""
    path = files_of(run, draw)
    whole = path.read_bytes()
    at = draw.randrange(len(whole) + 1)
    noise = draw.randbytes(draw.choice((1, 8, 300)))
    path.write_bytes(draw.choice((whole[:at] + noise + whole[at + len(noise) :], whole[:at], noise, b"", whole * 2)))


def places(raw: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in parsed JSON."""
    items = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    return [(*path, key) for key, _ in items] + [p for key, value in items for p in places(value, (*path, key))]


def mutate_value(raw: Any, draw: random.Random) -> None:
    """Replace, remove or rename one value of parsed JSON."""
    path = draw.choice(places(raw) or [()])
    if not path:
        return
    for key in path[:-1]:
        raw = raw[key]
    how = draw.choice(("replace", "replace", "remove", "rename"))
    old = raw.pop(path[-1]) if isinstance(raw, dict) or how == "remove" else raw[path[-1]]
    if isinstance(raw, list):
        raw[path[-1] : path[-1]] = [draw.choice(VALUES)] if how != "remove" else []
    elif how != "remove":
        raw[str(path[-1]) + ("x" if how == "rename" else "")] = old if how == "rename" else draw.choice(VALUES)


def change_json(run: Path, draw: random.Random) -> Path:
    """Change a value of a JSON file, without its digest; some are nested too deep or doubled."""
    path = files_of(run, draw, draw.choice(("*.json", "*.json", "run.json", "manifest.json")))
    raw = json.loads(path.read_text())
    if isinstance(raw, dict) and draw.random() < 0.8:
        raw.pop("digest", None)
    mutate_value(raw, draw)
    sys.set_int_max_str_digits(0)
    text = json.dumps(raw)
    sys.set_int_max_str_digits(4300)
    if draw.random() < 0.05:
        text = "[" * 100_000
    path.write_text(text)
    return path


def change_lines(run: Path, draw: random.Random) -> None:
    """Drop, repeat, shuffle or alter lines of metrics.jsonl or config.yaml."""
    path = run / draw.choice(("metrics.jsonl", "metrics.jsonl", "config.yaml"))
    lines = path.read_text().splitlines()
    at = draw.randrange(len(lines))
    if path.suffix == ".jsonl" and draw.random() < 0.4:
        raw = json.loads(lines[at])
        raw[draw.choice(list(raw))] = draw.choice([value for value in VALUES if value != 10**5000])
        lines[at] = json.dumps(raw)
    else:
        lines = draw.choice((lines[at:], lines[:at], lines[:at] + lines[at + 1 :], lines * 2, lines[::-1]))
    path.write_text("".join(f"{line}\n" for line in lines))


def change_and_seal(run: Path, draw: random.Random) -> None:
    """Change a file and make the manifest agree, so that no hash stops a reader before it parses the content."""
    sealed = sorted(path for path in run.rglob(MANIFEST))
    directory = draw.choice(sealed).parent
    path = draw.choice(sorted(p for p in directory.iterdir() if p.is_file() and p.name != MANIFEST))
    if path.suffix == ".json":
        raw = json.loads(path.read_text())
        mutate_value(raw, draw)
        sys.set_int_max_str_digits(0)
        path.write_text(json.dumps(raw))
        sys.set_int_max_str_digits(4300)
    else:
        whole = bytearray(path.read_bytes())
        whole[draw.randrange(min(len(whole), 600))] ^= draw.randrange(1, 256)
        path.write_bytes(whole)
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest.pop("digest", None)
    manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    (directory / MANIFEST).write_text(json.dumps(manifest))


def change_links(run: Path, draw: random.Random) -> None:
    """Put a link in the place of a file or directory: dangling, to itself, out of the run or to another file of it."""
    everything = sorted(path for path in run.rglob("*"))
    path = draw.choice(everything) if draw.random() < 0.7 else files_of(run, draw)
    target = draw.choice([*TARGETS, path.name, str(draw.choice(everything))])
    _remove(path)
    path.symlink_to(target)


def change_kinds(run: Path, draw: random.Random) -> None:
    """Put a directory, a pipe or nothing in the place of a file, or a file in that of a directory."""
    everything = sorted(path for path in run.rglob("*"))
    path = draw.choice(everything) if draw.random() < 0.6 else files_of(run, draw)
    _remove(path)
    made: list[Callable[[], Any]] = [path.mkdir, lambda: os.mkfifo(path), lambda: path.write_text("x"), lambda: None]
    draw.choice(made)()


def change_names(run: Path, draw: random.Random) -> None:
    """Rename a file or directory, copy it under another name, or name a file of elsewhere in a manifest."""
    path = draw.choice(sorted(path for path in run.rglob("*")))
    name = draw.choice([*NAMES, os.fsdecode(b"\xff\xfe")])
    how = draw.choice(("rename", "copy", "manifest"))
    if how == "manifest":
        manifest = draw.choice(sorted(run.rglob(MANIFEST)))
        raw = json.loads(manifest.read_text())
        raw.pop("digest", None)
        first = next(iter(raw["files"]))
        raw["files"][draw.choice(("../run.json", "/etc/passwd", "", ".", "a/b", "x\0", name))] = raw["files"][first]
        manifest.write_text(json.dumps(raw))
    elif how == "rename":
        path.rename(path.with_name(name))
    elif path.is_file():
        shutil.copyfile(path, path.with_name(name))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


KINDS: dict[str, Callable[[Path, random.Random], Any]] = {
    "bytes": change_bytes,
    "json": change_json,
    "lines": change_lines,
    "sealed": change_and_seal,
    "links": change_links,
    "kinds": change_kinds,
    "names": change_names,
}


def fuzz(base: Path, seeds: range, kinds: list[str], by_command: bool, tally: Tally) -> None:
    """Mutate a fresh copy of `base` for each seed, run a command on it and count how it ended."""
    here = Path.cwd()
    for seed in seeds:
        draw = random.Random(seed)
        kind = kinds[seed % len(kinds)]
        name = draw.choice(list(COMMANDS))
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "w"
            shutil.copytree(base, place, symlinks=True)
            KINDS[kind](place / "runs" / "tiny", draw)
            os.chdir(place)
            try:
                program, *words = COMMANDS[name]
                ending = (as_command if by_command else in_process)(program, words)
            finally:
                os.chdir(here)
        if name in AUDITS and ending.code == 1 and not ending.message.strip():
            ending = replace(ending, problem=None)  # what an audit finds it prints on stdout
        tally.add(kind, f"{name} --seed {seed}", ending)
        if ending.problem is not None:
            print(tally.problems[-1][-1500:], flush=True)


def main() -> None:
    """Print every ending that is wrong, and a table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="mutations in process")
    parser.add_argument("--commands", type=int, default=0, help="of each kind by command, in place of those in process")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    count = options.commands * len(KINDS) if options.commands else options.count
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_base(base)
        fuzz(base, range(options.seed, options.seed + count), list(KINDS), bool(options.commands), tally)
    print(tally.table())
    sys.exit(bool(tally.problems))


if __name__ == "__main__":
    main()
