"""A stand-in for the hub on this machine that is written to: the requests that the hub's own client makes to push.

It can be told to answer the next requests of a kind with an error, or to drop the connection, before or after acting.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

REPO = "somebody/tiny"


@dataclass
class Commit:
    """One commit with all files that are there after it."""

    oid: str
    title: str
    message: str
    files: dict[str, bytes]


@dataclass
class Fault:
    """What the next `times` requests that match "METHOD path" get: a status, or for 0 no answer.

    `acts` says whether the request is carried out all the same, as when the answer is lost.
    """

    request: str
    status: int = 0
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    acts: bool = False


@dataclass
class Hub:
    """Branch -> commits, the newest last; and what was asked for, and with which Authorization."""

    endpoint: str = ""
    private: bool | None = None
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    authorizations: set[str | None] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)  # requests wait until it is set

    def at(self, tag: str) -> dict[str, bytes]:
        """The files that a tag names."""
        commits = {commit.oid: commit for branch in self.branches.values() for commit in branch}
        return commits[self.tags[tag]].files

    def titles(self, branch: str) -> list[str]:
        """Titles of the commits that were pushed, in their order."""
        return [commit.title for commit in self.branches.get(branch, [])[1:]]

    def fault(self, request: str) -> Fault | None:
        """The fault that is due, counted down."""
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.request, request):
                fault.times -= 1
                return fault
        return None


@contextmanager
def serving() -> Iterator[Hub]:
    """An empty hub, served until the block ends."""
    hub = Hub()
    hub.gate.set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    server.block_on_close = False
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


Answer = tuple[int, Any]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        self.hub.gate.wait()
        body = self._body()
        path = unquote(self.path.partition("?")[0])
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        self.hub.authorizations.add(self.headers.get("Authorization"))
        fault = self.hub.fault(request)
        if fault is None:
            return self._send(*self._act(request, body))
        if fault.acts:
            self._act(request, body)
        if fault.status == 0:
            self.close_connection = True
            return self.connection.close()
        return self._send(fault.status, {"error": "as told"}, fault.headers)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _act(self, request: str, body: bytes) -> Answer:
        for pattern, act in _ROUTES.items():
            match = re.fullmatch(pattern, request)
            if match:
                return act(self.hub, body, *match.groups())
        return 404, {"error": f"the stand-in does not know {request}"}

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is written to stderr."""


def _create_repo(hub: Hub, body: bytes) -> Answer:
    if hub.branches:
        return 409, {"error": "it exists", "url": f"{hub.endpoint}/{REPO}"}
    hub.private = json.loads(body)["visibility"] == "private"
    hub.branches["main"] = [Commit("0" * 40, "initial commit", "", {})]
    return 200, {"url": f"{hub.endpoint}/{REPO}"}


def _create_branch(hub: Hub, body: bytes, branch: str) -> Answer:
    if branch in hub.branches:
        return 409, {"error": "it exists"}
    hub.branches[branch] = list(hub.branches["main"])
    return 200, {}


def _commits(hub: Hub, body: bytes, branch: str) -> Answer:
    made = {"authors": [], "date": "2026-01-01T00:00:00.000Z"}
    return 200, [{"id": c.oid, "title": c.title, "message": c.message, **made} for c in reversed(hub.branches[branch])]


def _refs(hub: Hub, body: bytes) -> Answer:
    tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in hub.tags.items()]
    heads = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c[-1].oid} for n, c in hub.branches.items()]
    return 200, {"branches": heads, "converts": [], "tags": tags}


def _preupload(hub: Hub, body: bytes, branch: str) -> Answer:
    files = [file["path"] for file in json.loads(body)["files"]]
    mode = {True: "lfs", False: "regular"}
    return 200, {
        "files": [{"path": f, "uploadMode": mode[f.endswith(".safetensors")], "shouldIgnore": False} for f in files]
    }


def _batch(hub: Hub, body: bytes) -> Answer:
    objects = []
    for wanted in json.loads(body)["objects"]:
        place = {"actions": {"upload": {"href": f"{hub.endpoint}/blob/{wanted['oid']}"}}}
        objects.append({**wanted, **({} if wanted["oid"] in hub.blobs else place)})
    return 200, {"transfer": "basic", "objects": objects}


def _blob(hub: Hub, body: bytes, oid: str) -> Answer:
    assert hashlib.sha256(body).hexdigest() == oid
    hub.blobs[oid] = body
    return 200, {}


def _commit(hub: Hub, body: bytes, branch: str) -> Answer:
    header, *entries = map(json.loads, body.splitlines())
    commits = hub.branches[branch]
    if header["value"].get("parentCommit") not in (None, commits[-1].oid):
        return 412, {"error": "the branch has moved"}
    files = dict(commits[-1].files)
    for entry in entries:
        value = entry["value"]
        is_large = entry["key"] == "lfsFile"
        files[value["path"]] = hub.blobs[value["oid"]] if is_large else base64.b64decode(value["content"])
    oid = hashlib.sha1(body + commits[-1].oid.encode()).hexdigest()
    commits.append(Commit(oid, header["value"]["summary"], header["value"]["description"], files))
    return 200, {"commitUrl": f"{hub.endpoint}/{REPO}/commit/{oid}", "commitOid": oid}


def _tag(hub: Hub, body: bytes, revision: str) -> Answer:
    tag = json.loads(body)["tag"]
    if tag in hub.tags:
        return 409, {"error": "it exists"}
    hub.tags[tag] = revision
    return 200, {}


def _untag(hub: Hub, body: bytes, tag: str) -> Answer:
    del hub.tags[tag]
    return 200, {}


def _tree(hub: Hub, body: bytes, oid: str) -> Answer:
    """Files of a commit, with the sha256 of large ones."""
    commits = {commit.oid: commit for branch in hub.branches.values() for commit in branch}
    listed = []
    for path, content in commits[oid].files.items():
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if path.endswith(".safetensors"):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        listed.append(entry)
    return 200, listed


_API = f"/api/models/{REPO}"
_ROUTES = {
    r"POST /api/repos/create": _create_repo,
    r"POST /api/validate-yaml": lambda hub, body: (200, {}),
    rf"POST {_API}/branch/(.+)": _create_branch,
    rf"GET {_API}/commits/(.+)": _commits,
    rf"GET {_API}/refs": _refs,
    rf"GET {_API}/tree/([0-9a-f]+)": _tree,
    rf"POST {_API}/preupload/(.+)": _preupload,
    rf"POST /{REPO}\.git/info/lfs/objects/batch": _batch,
    r"PUT /blob/([0-9a-f]+)": _blob,
    rf"POST {_API}/commit/(.+)": _commit,
    rf"POST {_API}/tag/(.+)": _tag,
    rf"DELETE {_API}/tag/(.+)": _untag,
}
