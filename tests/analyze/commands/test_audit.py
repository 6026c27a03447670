"""`audit` from the command line."""

from __future__ import annotations

import json

from pico_contract.layout import MANIFEST, RunLayout

from ...support.command_line import Command


def test_audit_is_0_for_a_sound_run_and_1_with_findings(command: Command, layout: RunLayout) -> None:
    layout.metrics.write_text('{"step": 1, "tokens": 100}\n{"step": 2, "tokens": 200}\n')
    layout.manifest.write_text(
        json.dumps(json.loads(layout.manifest.read_text()) | {"name": "synthetic", "digest": ""})
    )
    layout.config.write_text("name: synthetic\n")
    code, out, err = command("audit", layout.root)
    looked = "4 checkpoints and snapshots, 0 evaluations; of 15 files every byte was compared with a recorded sha256"
    *uncovered, last = out.splitlines()
    assert (code, last) == (0, f"sound: {looked}; not covered: 3 (named above)")
    assert [line.split(":")[:2] for line in uncovered] == [
        ["not covered", f" {path}"] for path in (layout.manifest, layout.config, layout.metrics)
    ]
    assert err.splitlines()[-1] == "read 16 of 16"
    (layout.snapshot(1) / MANIFEST).unlink()
    code, out, err = command("audit", layout.root, "--no-hashes")
    assert code == 1
    found, *_, last = out.splitlines()
    assert found == f"damage: {layout.snapshot(1) / MANIFEST}: does not exist"
    assert last.startswith("1 finding in 4 checkpoints and snapshots, 0 evaluations; of 10 files the size alone was")
    assert command("audit", layout.root.with_name("smal"))[0] == 2
