"""A stand-in for the hub on this machine: one repository over HTTP, as the hub's own client asks for it.

It answers with branches, the commits of a branch, listings of files, ranges and etags, and can be told to be busy.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

REPO = "somebody/pythia-tiny"


@dataclass
class Replica:
    """A repository, what was asked for, and how many of the next answers are `429 Retry-After: 0`.

    Attributes:
        revisions: branch -> file -> bytes, at its last commit.
        history: branch -> (title, files) of each commit, the newest first; the first has the files of the branch.
    """

    revisions: dict[str, dict[str, bytes]]
    history: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    endpoint: str = ""
    downloads: list[tuple[str, str]] = field(default_factory=list)  # (revision, file), whole files alone
    busy: int = 0

    def commit(self, revision: str, back: int = 0) -> str:
        """The hash of a branch's commit, `back` before the newest."""
        name = f"{revision}~{back}" if back else revision
        return hashlib.sha1(name.encode()).hexdigest()

    def commits(self, revision: str) -> list[tuple[str, str, dict[str, bytes]]]:
        """(hash, title, files) of each commit of a branch, the newest first."""
        listed = self.history.get(revision) or [("initial commit", self.revisions[revision])]
        return [(self.commit(revision, back), title, files) for back, (title, files) in enumerate(listed)]

    def files(self, commit: str) -> tuple[str, dict[str, bytes]]:
        """The branch and the files of a commit."""
        every = ((name, found) for name in self.revisions for found in self.commits(name))
        return next((name, files) for name, (id_, _, files) in every if id_ == commit)


@contextmanager
def serving(
    revisions: dict[str, dict[str, bytes]], history: dict[str, list[tuple[str, dict[str, bytes]]]] | None = None
) -> Iterator[Replica]:
    """The replica of a repository, served until the block ends; of branches with a history the last files are its."""
    history = history or {}
    replica = Replica(revisions | {name: commits[0][1] for name, commits in history.items()}, history)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"replica": replica}))
    replica.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield replica
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    replica: Replica

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.replica.busy > 0:
            self.replica.busy -= 1
            return self._answer(429, b"", {"Retry-After": "0"})
        if self.path.startswith(f"/api/models/{REPO}/refs"):
            commits = {name: self.replica.commit(name) for name in self.replica.revisions}
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in commits.items()]
            return self._answer(200, json.dumps({"branches": branches, "converts": [], "tags": []}).encode())
        path = self.path.partition("?")[0]
        if (listed := re.fullmatch(rf"/api/models/{REPO}/commits/([^/]+)", path)) is not None:
            return self._commits(unquote(listed[1]))
        if (listed := re.fullmatch(rf"/api/models/{REPO}/tree/([0-9a-f]+)", path)) is not None:
            return self._tree(listed[1])
        wanted = re.fullmatch(rf"/{REPO}/resolve/([0-9a-f]+)/(.+)", path)
        if wanted is None:
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        revision, files = self.replica.files(wanted[1])
        if unquote(wanted[2]) not in files:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self._file(wanted[1], revision, unquote(wanted[2]), files[unquote(wanted[2])])

    def _commits(self, revision: str) -> None:
        date = "2025-01-01T00:00:00.000Z"
        listed = [
            {"id": id_, "title": title, "message": "", "date": date, "authors": []}
            for id_, title, _ in self.replica.commits(revision)
        ]
        return self._answer(200, json.dumps(listed).encode())

    def _tree(self, commit: str) -> None:
        """Files in safetensors and pickles are large ones, of which the sha256 is listed."""
        listed = []
        for path, content in self.replica.files(commit)[1].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"type": "file", "path": path, "size": len(content), "oid": blob}
            if path.endswith((".safetensors", ".pt", ".bin")):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
            listed.append(entry)
        return self._answer(200, json.dumps(listed).encode())

    def _file(self, commit: str, revision: str, file: str, content: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part:
            piece = content[int(part[1]) : int(part[2]) + 1]
            return self._answer(206, piece, headers | {"Content-Range": f"bytes {part[1]}-{part[2]}/{len(content)}"})
        if self.command == "GET":
            self.replica.downloads.append((revision, file))
        return self._answer(200, content, headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is written to stderr."""
