"""A Hugging Face hub on this machine, as far as the real client needs one to open models and to upload them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_LARGE = (".safetensors", ".bin", ".parquet")  # what the hub keeps in its large file storage


@dataclass
class Hub:
    """What it holds, by repository (``"owner/name"``; datasets as ``"datasets/owner/name"``).

    Args:
        commits: Files of each commit, oldest first: (commit, {name: content}).
        branches: The commit of each branch, other than ``main``, which is the newest.
        gated: Repositories that ask for a token.
        cut: Files whose next answers are cut after so many bytes.
        stored: The large files that were uploaded, by SHA-256.
        asked: (method, path, Range) of every request.
    """

    commits: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut: dict[str, list[int]] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    address: str = ""

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        history = self.commits.setdefault(repo, [])
        sha = hashlib.sha1(f"{repo} {len(history)}".encode()).hexdigest()
        history.append((sha, files))
        return sha

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        history = self.commits.get(repo, [])
        if revision == "main" and history:
            return history[-1]
        wanted = self.branches.get((repo, revision), revision)
        return next((found for found in history if found[0] == wanted), None)


@contextmanager
def serving_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.read()

        def do_GET(self) -> None:
            self.read()

        def do_POST(self) -> None:
            path, body = self.begin()
            if path == "/api/repos/create":
                wanted = json.loads(body)
                repo = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
                if repo not in hub.commits:
                    hub.commit(repo, {".gitattributes": b""})
                self.json({"url": f"{hub.address}/{repo}", "name": repo})
            elif path == "/api/validate-yaml":
                self.json({"errors": [], "warnings": []})
            elif path.endswith("/preupload/main"):
                files = json.loads(body)["files"]
                self.json({"files": [
                    {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(_LARGE) else "regular",
                     "shouldIgnore": False, "oid": None} for f in files
                ]})  # fmt: skip
            elif path.endswith(".git/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                self.json({"transfer": "basic", "objects": [
                    {**o, "actions": {"upload": {"href": f"{hub.address}/storage/{o['oid']}", "header": {}}}}
                    for o in objects
                ]})  # fmt: skip
            elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
                self.committed(found[1], body)
            else:
                self.fail(404, "EntryNotFound", path)

        def do_PUT(self) -> None:
            path, body = self.begin()
            hub.stored[path.removeprefix("/storage/")] = body
            self.json({})

        def committed(self, repo: str, body: bytes) -> None:
            files: dict[str, bytes] = {}
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = hub.stored[value["oid"]]
            sha = hub.commit(repo, files)
            self.json({"success": True, "commitOid": sha, "commitUrl": f"{hub.address}/{repo}/commit/{sha}"})

        def read(self) -> None:
            path, _ = self.begin()
            if found := re.fullmatch(r"/api/models/(.+)/tree/(.+)", path):
                commit = hub.at(found[1], found[2])
                files = {} if commit is None else commit[1]
                return self.json([self.entry(name, content) for name, content in files.items()])
            if found := re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path):
                commit = hub.at(found[1], found[2] or "main")
                if commit is None:
                    return self.fail(404, "RepoNotFound" if found[1] not in hub.commits else "RevisionNotFound", path)
                siblings = [{"rfilename": name} for name in commit[1]]
                return self.json({"id": found[1], "modelId": found[1], "sha": commit[0], "siblings": siblings,
                                  "private": False, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
            found = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path)
            repo, revision, name = found.groups() if found else ("", "", "")
            if repo in hub.gated and not self.headers.get("Authorization"):
                return self.fail(401, "GatedRepo", f"Access to model {repo} is restricted.")
            commit = hub.at(repo, revision)
            if commit is None or name not in commit[1]:
                return self.fail(404, "EntryNotFound" if commit else "RepoNotFound", path)
            return self.file(commit[0], name, commit[1][name])

        def entry(self, name: str, content: bytes) -> dict[str, Any]:
            entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            return {**entry, "lfs": lfs} if name.endswith(_LARGE) else entry

        def file(self, sha: str, name: str, whole: bytes) -> None:
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            start = int(wanted[1]) if wanted else 0
            body = whole[start:]
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            large = name.endswith(_LARGE)
            etag = f'"{(hashlib.sha256 if large else hashlib.sha1)(whole).hexdigest()}"'
            headers: dict[str, Any] = {"X-Repo-Commit": sha, "ETag": etag, "Content-Length": len(body)}
            headers |= {"X-Linked-ETag": etag, "X-Linked-Size": len(whole)} if large else {}
            for key, value in headers.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                cuts = hub.cut.get(name, [])
                with suppress(ConnectionError):
                    if cuts:
                        self.wfile.write(body[: cuts.pop(0)])
                        self.close_connection = True
                    else:
                        self.wfile.write(body)

        def begin(self) -> tuple[str, bytes]:
            hub.asked.append((self.command, self.path, self.headers.get("Range")))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return unquote(urlsplit(self.path).path), body

        def json(self, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def fail(self, status: int, code: str, message: str) -> None:
            self.send_response(status)
            for key, value in (("X-Error-Code", code), ("X-Error-Message", message), ("Content-Length", "0")):
                self.send_header(key, value)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
