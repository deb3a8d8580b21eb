"""A small server on this machine that speaks the protocol of the Hugging Face Hub: info, tree, files, and ranges."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN, EXPIRED = "hf_accepted", "hf_expired"


@dataclass
class Repository:
    """Files of one commit. `gated` and `private` need TOKEN."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    card: dict[str, Any] = field(default_factory=lambda: {"license": "apache-2.0"})
    claimed_sizes: dict[str, int] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files)).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server.

    requests   (method, path, range) of each request
    cut_after  {file: bytes}: the first answer with this file breaks off after so many bytes
    failing    a status with which each request fails
    hanging    files of which the first half is sent, and then nothing while they are in this set
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_after: dict[str, int] = {}
        self.failing: int | None = None
        self.hanging: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def downloads(self) -> list[str]:
        """The files that were sent, with the range that was asked for."""
        sent = [(path, part) for method, path, part in self.requests if method == "GET"]
        sent = [(path.rpartition("/")[2], part) for path, part in sent if re.search("^/blobs/|/resolve/", path)]
        return [f"{file} {part}" if part else file for file, part in sent]


@contextmanager
def running_hub() -> Generator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, Hub)
        return self.server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path, _, _ = self.path.partition("?")
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.failing:
            return self._fail(self.hub.failing, "", "The server fails")
        if self.headers.get("Authorization") == f"Bearer {EXPIRED}":
            return self._fail(401, "", "Invalid credentials in Authorization header")
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        blob = re.fullmatch(r"/blobs/([^/]+/[^/]+)/(.+)", path)  # what a content delivery network holds
        found = info or tree or file or blob
        repository = self.hub.repositories.get(found[1]) if found else None
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if blob and repository:
            return self._send_file(blob[2], repository.files[blob[2]])
        if found is None or repository is None or (repository.private and not authorized):
            return self._fail(401, "RepoNotFound", "Invalid username or password.")
        if found[2] not in (None, "main", repository.commit):
            return self._fail(404, "RevisionNotFound", "Invalid rev id")
        if info:
            siblings = [{"rfilename": entry["path"], **entry} for entry in self._entries(repository)]
            content = {"id": info[1], "sha": repository.commit, "siblings": siblings, "cardData": repository.card}
            return self._send_json(content)
        if tree:
            return self._send_json(self._entries(repository))
        assert file
        if repository.gated and not authorized:
            return self._fail(401, "GatedRepo", f"Access to model {file[1]} is restricted.")
        if file[3] not in repository.files:
            return self._fail(404, "EntryNotFound", "Entry not found")
        content_of_file = repository.files[file[3]]
        headers = {"X-Repo-Commit": repository.commit}
        if _is_large(file[3]):  # as the hub does, large files are elsewhere
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content_of_file).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content_of_file))
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
            return self._send(302, b"", {**headers, "Location": f"{elsewhere}/blobs/{file[1]}/{file[3]}"})
        return self._send_file(file[3], content_of_file, headers)

    def _entries(self, repository: Repository) -> list[dict[str, Any]]:
        entries = []
        for path, content in repository.files.items():
            size = repository.claimed_sizes.get(path, len(content))
            oid = hashlib.sha1(content).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": oid, "blobId": oid}
            if _is_large(path):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
                entry["lfs"]["sha256"] = entry["lfs"]["oid"]
            entries.append(entry)
        return entries

    def _send_file(self, name: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        etag = hashlib.sha1(content).hexdigest()
        headers = {**(headers or {}), "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        status, part = 200, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if part:
            status, start = 206, int(part[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content = content[start:]
        if name in self.hub.hanging and self.command == "GET":
            self._send(status, content, headers, len(content) // 2)
            while name in self.hub.hanging:
                time.sleep(0.01)
            return
        cut = self.hub.cut_after.pop(name, None) if self.command == "GET" else None
        self._send(status, content, headers, cut)

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str, message: str) -> None:
        content = json.dumps({"error": message}).encode()
        self._send(status, content, {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, content: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])
            self.wfile.flush()
        if cut is not None:
            self.close_connection = True


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".gguf"))
