"""A stand-in for the hub on this machine: branches of one repository over HTTP, as the hub's own client asks for them.

It answers with ranges, etags and commits, and can be told to be busy, to cut files short, or to refuse.
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

REPO = "somebody/pythia-tiny"


@dataclass
class Replica:
    """Revision -> file -> bytes; what was asked for; and how many of the next answers are `429 Retry-After: 0`."""

    revisions: dict[str, dict[str, bytes]]
    endpoint: str = ""
    downloads: list[tuple[str, str]] = field(default_factory=list)  # (revision, file), whole files alone
    busy: int = 0

    def commit(self, revision: str) -> str:
        return hashlib.sha1(revision.encode()).hexdigest()


@contextmanager
def serving(revisions: dict[str, dict[str, bytes]]) -> Iterator[Replica]:
    """The replica of a repository, served until the block ends."""
    replica = Replica(revisions)
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
        commits = {self.replica.commit(name): name for name in self.replica.revisions}
        if self.path.startswith(f"/api/models/{REPO}/refs"):
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for c, n in commits.items()]
            return self._answer(200, json.dumps({"branches": branches, "converts": [], "tags": []}).encode())
        wanted = re.fullmatch(rf"/{REPO}/resolve/([0-9a-f]+)/([^/?]+)", self.path)
        if wanted is None:
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        revision, file = commits[wanted[1]], wanted[2]
        if file not in self.replica.revisions[revision]:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self._file(wanted[1], revision, file)

    def _file(self, commit: str, revision: str, file: str) -> None:
        content = self.replica.revisions[revision][file]
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
