"""The findings of an audit, and the account of what it compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pico_contract.layout import RunLayout
from pico_contract.schema import CheckpointManifest, RunManifest, SnapshotManifest
from pico_contract.terminal import one_line


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be: which check found it, the file at fault, and a
    sentence."""

    check: str  # damage | missing | duplicate | log | discontinuity
    path: Path
    sentence: str

    def __str__(self) -> str:
        return one_line(f"{self.check}: {self.path}: {self.sentence}")


@dataclass
class Audit:
    """The result of an audit.

    Attributes:
        findings: what is wrong.
        directories: checkpoints and snapshots that were looked at.
        evaluations: evaluations that were looked at.
        compared: files whose every byte was compared with a recorded sha256, or, without hashes,
            whose size was.
        uncovered: file or directory -> why its content is compared with nothing.
    """

    findings: list[Finding] = field(default_factory=list)
    directories: int = 0
    evaluations: int = 0
    compared: set[Path] = field(default_factory=set)
    uncovered: dict[Path, str] = field(default_factory=dict)

    def add(self, check: str, path: Path, sentence: str) -> None:
        """Record a finding once."""
        finding = Finding(check, path, sentence)
        if finding not in self.findings:
            self.findings.append(finding)


@dataclass
class AuditedRun:
    """A run while it is audited: its manifest and, by step, its intact checkpoints and
    snapshots."""

    layout: RunLayout
    manifest: RunManifest
    hashes: bool
    checkpoints: dict[int, CheckpointManifest] = field(default_factory=dict)
    snapshots: dict[int, SnapshotManifest] = field(default_factory=dict)

    def states_digest(self, created: str) -> bool:
        """Whether a manifest of that time must state a digest: the sessions since then did record
        the code's state."""
        since = [
            str(session.get("started")) for session in self.manifest.sessions if "dirty" in session
        ]
        return bool(since) and created >= min(since)
