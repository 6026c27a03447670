"""Damage configurations of both libraries in every way we know; each must end in exit 0, 1 or 2 with a sentence.

    python benchmarks/fuzz_configuration.py                 10,000 mutations in process, a few minutes
    python benchmarks/fuzz_configuration.py --commands 50   50 of each kind by command, in processes of their own

Equal seeds give equal mutations. The exit code is 1 if one ends otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzzing import Ending, Tally, as_command, in_process
from pico_contract import strict_yaml

TEXT = "The ferry left at {0} with {1} crates of pears, and number {0} of the crew counted them again.\n\n"

TRAIN = {
    "name": "t",
    "model": {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    | {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32},
    "data": {"path": "data"},
    "train": {"steps": 4, "batch_size": 4, "threads": 1, "device": "cpu"},
    "optimizer": {"lr": 0.01, "betas": [0.9, 0.95], "no_decay": ["*norm*"]},
    "schedule": {"name": "linear", "warmup_steps": 1},
    "method": {"name": "relora", "options": {"rank": 2, "modules": ["self_attn.q_proj"], "restart_every": 2}},
    "snapshot": {"every": 2, "modules": ["*_proj"], "positions": {"rule": "last"}},
    "observe": [{"name": "analyze", "every": 2, "options": {"metrics": ["gini"]}}],
    "checkpoint": {"every": 2, "keep": {"last": 2}},
    "evaluate": {"every": 0, "text_perplexity": {"sources": {"own": {"path": "text.txt"}}}},
    "log": {"mfu": "off", "trackers": []},
}
PREPARE = {
    "source": {"path": "text.txt", "separator": "\n\n"},
    "out": "prepared",
    "seq_len": 16,
    "tokenizer": {"vocab_size": 300, "sample_characters": 20000},
    "validation_fraction": 0.1,
    "max_tokens": 4000,
    "licence": "none",
}
ANALYZE = {
    "run": "runs/t",
    "name": "fuzz",
    "metrics": ["per", "gini", "cka"],
    "components": ["v_proj"],
    "steps": {"start": 0, "end": 10, "step": 2},
    "kinds": ["weights", "gradients"],
    "reference": "first",
    "figures": {"metrics": [], "formats": ["png"]},
    "null_draws": 9,
}


@dataclass(frozen=True)
class Target:
    """A command, and a valid configuration of it."""

    program: str
    words: tuple[str, ...]
    config: dict[str, Any]


TARGETS = {
    "check": Target("pico-train", ("check",), TRAIN),
    "data prepare": Target("pico-train", ("data", "prepare"), PREPARE),
    "analyze": Target("pico-analyze", ("run",), ANALYZE),
}

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**22, 10**400, -(10**400), 0.0, -0.0, 1.5, -1e308, 5e-324),
    *("", " ", "~", "null", "010", "1:30", "1e5", "off", "yes", "=", "<<", "*", "&", "\0", "\0" * 50, "a\nb", "\t"),
    *("x" * 300, "x" * 100_000, "../../..", "/", "/dev/null", "/proc/self/mem", "a/b", "é", "\u202e", "\ufeff", "\x85"),
    *(
        "json:loads",
        "os:system",
        "no_such:Thing",
        ":",
        "a:",
        ":b",
        "hub:",
        "hub:@",
        "*[",
        "[",
        "%s",
        "{0}",
        "\\",
        "$HOME",
    ),
    *([], {}, [[]], [None], [[[[[]]]]], {"": 1}, {"a": {"b": {"c": 1}}}, [1, "a", None], ["x"] * 2000, {"int": 1}),
    *({"str": {"int": 1}}, {"Int": 1}, {"range": 1}, {"list": []}, [{"list": 1}], list(range(5000))),
]
KEYS = ["int", "str", "float", "bool", "Section", "DecoderConfig", "X", "list[int]", "a.b", "a b", " ", "", "0", "-1"]
KEYS += ["null", "true", "1.5", "~", "__pydantic_config__", "__class__", "model_fields", "x" * 5000, "é", "\0", "<<"]
TOKENS = [
    "\t",
    "\0",
    "\x1b[31m",
    "\ufeff",
    "\x85",
    "{",
    "}",
    "[",
    "]",
    ",",
    ": ",
    "- ",
    "? ",
    "&a ",
    "*a",
    "!!python/object:x ",
    "!",
]
TOKENS += [
    "|",
    ">",
    "'",
    '"',
    "%YAML 1.1\n",
    "---\n",
    "...\n",
    "#",
    "<<: *a",
    "<<: 3",
    "@",
    "`",
    "\r",
    "\n",
    "  ",
    "é",
    "010",
    "1:30",
]
TOKENS += [".nan", "-.inf", "!!binary aGk=", "&a [*a]", "1e400", "9" * 5000, "[" * 500, "{a: " * 500, "x" * 50_000]


def _places(raw: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values."""
    if keys:
        yield keys
    if isinstance(raw, dict | list):
        for key in raw if isinstance(raw, dict) else range(len(raw)):
            yield from _places(raw[key], (*keys, key))


def _inside(raw: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        raw = raw[key]
    return raw


def _mutable(raw: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(raw))


def replace_value(rng: random.Random, raw: dict[str, Any]) -> str:
    """Replace one to three values."""
    raw = _mutable(raw)
    for _ in range(rng.randint(1, 3)):
        *parents, last = rng.choice(list(_places(raw)))
        _inside(raw, tuple(parents))[last] = rng.choice(VALUES)
    return json.dumps(raw)


def rename_key(rng: random.Random, raw: dict[str, Any]) -> str:
    """Misspell a key, or replace it by one with a meaning to some program."""
    raw = _mutable(raw)
    *parents, last = rng.choice([keys for keys in _places(raw) if isinstance(keys[-1], str)])
    section = _inside(raw, tuple(parents))
    typos = [
        last.capitalize(),
        last.upper(),
        last[1:],
        last + last[-1:],
        last.replace("_", "-"),
        f" {last}",
        last[::-1],
    ]
    section[rng.choice([*typos, *KEYS])] = section.pop(last)
    return json.dumps(raw)


def add_keys(rng: random.Random, raw: dict[str, Any]) -> str:
    """Add keys that no section has."""
    raw = _mutable(raw)
    sections = [keys for keys in _places(raw) if isinstance(_inside(raw, keys), dict)]
    for _ in range(rng.randint(1, 30)):
        _inside(raw, rng.choice([(), *sections]))[rng.choice(KEYS)] = rng.choice(VALUES)
    return json.dumps(raw)


def remove_keys(rng: random.Random, raw: dict[str, Any]) -> str:
    """Remove keys, or only their values."""
    raw = _mutable(raw)
    for _ in range(rng.randint(1, 3)):
        if places := [keys for keys in _places(raw) if isinstance(keys[-1], str)]:
            *parents, last = rng.choice(places)
            section = _inside(raw, tuple(parents))
            section[last] = None
            if rng.random() < 0.5:
                del section[last]
    return strict_yaml.dump(raw)


def replace_bytes(rng: random.Random, raw: dict[str, Any]) -> str:
    """Replace characters of the text."""
    text = list(strict_yaml.dump(raw))
    for _ in range(rng.randint(1, 8)):
        text[rng.randrange(len(text))] = chr(rng.choice([rng.randrange(128), rng.randrange(0x3000)]))
    return "".join(text)


def insert_token(rng: random.Random, raw: dict[str, Any]) -> str:
    """Insert a token that YAML interprets, at any place."""
    text = strict_yaml.dump(raw)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice(TOKENS) + text[place:]
    return text


def after_a_colon(rng: random.Random, raw: dict[str, Any]) -> str:
    """Replace a value of the text by a token that YAML interprets."""
    lines = strict_yaml.dump(raw).splitlines()
    place = rng.randrange(len(lines))
    lines[place] = lines[place].partition(":")[0] + ": " + rng.choice(TOKENS)
    return "\n".join(lines)


def move_lines(rng: random.Random, raw: dict[str, Any]) -> str:
    """Double, move, cut and indent lines."""
    lines = strict_yaml.dump(raw).splitlines()
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(lines))
        line = lines[place]
        change = rng.choice([f"  {line}", line.strip(), line[: len(line) // 2], f"\t{line}", f"- {line}", ""])
        lines[place : place + rng.randint(0, 1)] = [change]
    return "\n".join(lines)


def cut_short(rng: random.Random, raw: dict[str, Any]) -> str:
    """Truncate the text."""
    text = rng.choice([strict_yaml.dump(raw), json.dumps(raw)])
    return text[: rng.randrange(len(text))]


def nest(rng: random.Random, raw: dict[str, Any]) -> str:
    """Insert deep nesting, and aliases that explode or contain themselves."""
    depth = rng.choice([1, 10, 63, 64, 65, 200, 1000, 20_000])
    links = rng.randint(1, 12)
    bomb = "\n".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}' if i else 'x'] * 9)}]" for i in range(links))
    part = rng.choice([f"x: {'[' * depth}{']' * depth}", f"x: {'{a: ' * depth}{'}' * depth}", bomb, "x: &x [*x]"])
    return f"{strict_yaml.dump(raw)}{part}\n"


Mutation = Callable[[random.Random, dict[str, Any]], str]
_MUTATIONS = (replace_value, rename_key, add_keys, remove_keys, replace_bytes, insert_token, after_a_colon)
MUTATIONS: dict[str, Mutation] = {
    mutation.__name__: mutation for mutation in (*_MUTATIONS, move_lines, cut_short, nest)
}


def overrides(rng: random.Random, raw: dict[str, Any]) -> list[str]:
    """Draw overrides of known and unknown keys with values of all sorts."""
    known = [".".join(map(str, keys)) for keys in _places(raw)]
    found = []
    for _ in range(rng.randint(1, 4)):
        key = rng.choice([*known, *known, *KEYS, *(f"{name}.{rng.choice(KEYS)}" for name in known), "a." * 2000 + "b"])
        value = rng.choice([json.dumps(rng.choice(VALUES)), rng.choice(TOKENS)])
        found.append(rng.choice([f"{key}={value}", f"{key}={value}", key, f"={value}", f"{key}=", f"{key}=={value}"]))
    return [text.replace("\0", "") for text in found]  # no argument of a program can hold a NUL


def attempt(target: Target, kind: str, seed: str, run: Callable[..., Ending]) -> Ending:
    """Run the mutation of a kind that `seed` draws."""
    rng = random.Random(seed)
    arguments = overrides(rng, target.config) if kind == "overrides" else []
    mutation = MUTATIONS.get(kind, lambda rng, raw: strict_yaml.dump(raw))
    Path("fuzz.yaml").write_text(mutation(rng, target.config), encoding="utf-8", newline="")
    shutil.rmtree(PREPARE["out"], ignore_errors=True)
    return run(target.program, [*target.words, "fuzz.yaml", *arguments])


def fuzz(count: int, commands: bool = False, seed: int = 0) -> Tally:
    """Run `count` mutations of each target and kind, in the working directory (`make_inputs`)."""
    tally = Tally()
    for name, target in TARGETS.items():
        for kind in (*MUTATIONS, "overrides"):
            for number in range(count):
                label = f"{seed}/{name}/{kind}/{number}"
                tally.add(kind, label, attempt(target, kind, label, as_command if commands else in_process))
    return tally


def make_inputs() -> None:
    """Make the text, the data and the run that the valid configurations name, in the working directory."""
    Path("text.txt").write_text("".join(TEXT.format(i % 13, i) for i in range(900)))
    _must_succeed(["data", "prepare"], {**PREPARE, "out": "data", "max_tokens": None})
    _must_succeed(["run"], {**TRAIN, "method": {"name": "plain"}, "observe": []})


def _must_succeed(words: list[str], config: dict[str, Any]) -> None:
    Path("fuzz.yaml").write_text(strict_yaml.dump(config))
    ending = in_process("pico-train", [*words, "fuzz.yaml"])
    if ending.code != 0:
        raise SystemExit(f"the inputs could not be made: {ending.message or ending.problem}")


def main() -> None:
    """Print the table of endings, and every one that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000, help="in all, in process")
    parser.add_argument("--commands", type=int, default=0, help="of each kind, in processes of their own, instead")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kinds = len(TARGETS) * (len(MUTATIONS) + 1)
    count = arguments.commands or -(-arguments.mutations // kinds)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_inputs()
        tally = fuzz(count, bool(arguments.commands), arguments.seed)
    for problem in tally.problems:
        print(problem, end="\n\n")
    print(tally.table())
    sys.exit(1 if tally.problems else 0)


if __name__ == "__main__":
    main()
