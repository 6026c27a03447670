"""Flip bytes of a run one at a time; `pico-analyze audit` must name the file each time.

    python benchmarks/flipped_bytes.py              every byte of every JSON, YAML and JSON lines file and of the header
                                                    of every safetensors file, and 200 of each one's tensors
    python benchmarks/flipped_bytes.py --every 40   one in 40 of them, in a minute

Equal seeds give equal flips. The exit code is 1 if the audit missed one.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pico_analyze.audit.checks import audit
from pico_contract.errors import DamagedError
from pico_contract.layout import RunLayout
from tiny_run import make_run

TENSOR_BYTES = 200


def positions(path: Path, draw: random.Random, every: int) -> list[tuple[str, int]]:
    """(part of the file, position) of the bytes of a file that are flipped."""
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        return [(path.suffix, at) for at in range(draw.randrange(every), size, every)]
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    chosen = [("header", at) for at in range(draw.randrange(every), header, every)]
    count = min(size - header, max(1, TENSOR_BYTES // every)) if size > header else 0
    return chosen + [("tensors", at) for at in sorted(draw.sample(range(header, size), count))]


def is_named(layout: RunLayout, path: Path) -> bool:
    """Whether the audit names `path`, in a finding or in the sentence with which it refuses the run."""
    try:
        return any(finding.path == path for finding in audit(layout.root).findings)
    except DamagedError as error:
        return str(path) in str(error)


def flips(layout: RunLayout, seed: int, every: int) -> Iterator[tuple[str, Path, int, bool]]:
    """(part, file, position, whether the audit named the file) of each flip; every file is as it was afterwards."""
    draw = random.Random(seed)
    for path in sorted(path for path in layout.root.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for part, at in positions(path, draw, every):
            flipped = bytes([whole[at] ^ draw.randrange(1, 256)])
            path.write_bytes(whole[:at] + flipped + whole[at + 1 :])
            yield part, path, at, is_named(layout, path)
        path.write_bytes(whole)


def main() -> None:
    """Print how many flips of each part of files the audit named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="flip one byte in so many")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    named: Counter[str] = Counter()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        layout = make_run(Path(folder))
        assert audit(layout.root).findings == []
        for part, path, at, found in flips(layout, options.seed, options.every):
            total[part] += 1
            named[part] += found
            if not found:
                print(f"not named: {path.relative_to(layout.root)}, byte {at}")
    for part in sorted(total):
        print(f"{part:10} {named[part]:8,} of {total[part]:8,} flips named")
    print(f"{'all':10} {named.total():8,} of {total.total():8,} flips named")
    sys.exit(named.total() != total.total())


if __name__ == "__main__":
    main()
