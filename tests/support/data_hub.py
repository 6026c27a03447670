"""A stand-in for the hub on this machine: one data set over HTTP, as the hub's own client asks for it.

It counts what is read, and can be told to answer the next requests for files with a status, to drop a connection in
the middle of a body, or to send other bytes.
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

REPO = "somebody/pretokenized-tiny"
DROP, OTHER_BYTES = "drop", "other bytes"


@dataclass
class StandIn:
    """Files of the data set; what was asked for; what happens to the next requests for files."""

    files: dict[str, bytes]
    commit: str = hashlib.sha1(b"first").hexdigest()
    endpoint: str = ""
    whole: list[str] = field(default_factory=list)  # files of which the whole was sent
    parts: list[tuple[str, int]] = field(default_factory=list)  # (file, bytes sent of a range)
    trouble: list[int | str] = field(default_factory=list)  # a status, DROP or OTHER_BYTES each
    retry_after: str | None = None


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[StandIn]:
    """The data set, served until the block ends."""
    state = StandIn(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"state": state}))
    server.daemon_threads = True
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: StandIn

    def do_GET(self) -> None:
        state = self.state
        if re.fullmatch(rf"/api/datasets/{REPO}(/revision/[^/]+)?", self.path):
            return self._answer(200, json.dumps({"id": REPO, "sha": state.commit}).encode())
        if self.path.startswith(f"/api/datasets/{REPO}/tree/{state.commit}"):
            return self._answer(200, json.dumps([_entry(*item) for item in state.files.items()]).encode())
        wanted = re.fullmatch(rf"/datasets/{REPO}/resolve/{state.commit}/([^?]+)", self.path)
        if wanted is None:
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        trouble = state.trouble.pop(0) if state.trouble else None
        if isinstance(trouble, int):
            return self._answer(trouble, b"", {"Retry-After": state.retry_after} if state.retry_after else {})
        if wanted[1] not in state.files:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self._file(wanted[1], trouble)

    def _file(self, name: str, trouble: str | None) -> None:
        content = self.state.files[name]
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part:
            piece = content[int(part[1]) : int(part[2]) + 1]
            self.state.parts.append((name, len(piece)))
            return self._answer(206, piece, {"Content-Range": f"bytes {part[1]}-{part[2]}/{len(content)}"})
        if trouble == DROP:
            self._answer(200, content[: len(content) // 2], length=len(content))
            return self.connection.close()
        self.state.whole.append(name)
        return self._answer(200, bytes(len(content)) if trouble == OTHER_BYTES else content)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int = -1) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body) if length < 0 else length), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is written to stderr."""


def _entry(name: str, content: bytes) -> dict[str, object]:
    sha256 = hashlib.sha256(content).hexdigest()
    lfs = {"oid": sha256, "size": len(content), "pointerSize": 130}
    return {"type": "file", "path": name, "size": len(content), "oid": sha256[:40], "lfs": lfs}
