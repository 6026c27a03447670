"""The findings of an audit, and the account of what it compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pico_contract.layout import RunLayout
from pico_contract.schema import CheckpointManifest, RunManifest, SnapshotManifest
from pico_contract.terminal import one_line


@dataclass(frozen=True)
class Finding:
    """A fault of a run: the check that found it, the file at fault, and a sentence."""

    check: str  # damage | missing | duplicate | log | discontinuity
    path: Path
    sentence: str

    def __str__(self) -> str:
        return one_line(f"{self.check}: {self.path}: {self.sentence}")


@dataclass
class Audit:
    """The result of an audit.

    Attributes:
        findings: the faults, each once.
        directories: number of checkpoints and snapshots that were checked.
        evaluations: number of evaluations that were checked.
        compared: files whose every byte was compared with a recorded sha256; without hashes, files
            whose size was compared.
        uncovered: file or directory -> why its content was not compared.
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
    """A run under audit: its manifest and, by step, its intact checkpoints and snapshots."""

    layout: RunLayout
    manifest: RunManifest
    hashes: bool
    checkpoints: dict[int, CheckpointManifest] = field(default_factory=dict)
    snapshots: dict[int, SnapshotManifest] = field(default_factory=dict)

    def states_digest(self, created: str) -> bool:
        """Whether a manifest created at that time must state a digest."""
        # Sessions record the code's state ("dirty") since the version that writes digests.
        sessions = [session for session in self.manifest.sessions if "dirty" in session]
        starts = [str(session.get("started")) for session in sessions]
        return bool(starts) and created >= min(starts)
