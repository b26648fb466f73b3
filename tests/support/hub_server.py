"""A Hugging Face hub on this machine: as much of its HTTP protocol as `datasets` uses to load files, whole or streamed.

    with HubServer({"someone/stories": {"main": {"train.parquet": b"..."}}}) as hub:
        ...  # HF_ENDPOINT=hub.url in the environment of a subprocess

`requests` is what was asked for; `break_off` cuts the responses for a path short after so many bytes, the first `times`
times.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

MISSING = {
    "RepoNotFound": "Repository not found",
    "RevisionNotFound": "Invalid rev id",
    "EntryNotFound": "Entry not found",
}


class HubServer:
    def __init__(self, repositories: dict[str, dict[str, dict[str, bytes]]], gated: tuple[str, ...] = ()):
        """repositories: {id: {revision: {path: content}}}"""
        self.repositories, self.gated = repositories, gated
        self.requests: list[tuple[str, str]] = []
        self.sent_bytes: dict[str, int] = {}
        self._broken: dict[str, list[int]] = {}
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def break_off(self, path: str, after: int, times: int):
        self._broken[path] = [after, times]

    def allowed(self, path: str, size: int) -> int:
        """How many bytes of a response of `size` are sent."""
        after, times = self._broken.get(path, (size, 0))
        if times > 0:
            self._broken[path][1] -= 1
            return min(after, size)
        return size

    @staticmethod
    def commit(repository: str, revision: str) -> str:
        return hashlib.sha1(f"{repository} {revision}".encode()).hexdigest()

    def files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, files) of a branch, tag or commit."""
        for name, files in self.repositories[repository].items():
            if revision in (name, self.commit(repository, name)):
                return self.commit(repository, name), files
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        resolve = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        api = re.fullmatch(r"/api/datasets/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path)
        if not (resolve or api):
            return self._json({}, 200 if path == "/" else 404)
        repository, revision = (
            (resolve.group(1), resolve.group(2)) if resolve else (api.group(1), api.group(3) or "main")
        )
        if repository not in self.hub.repositories:
            return self._missing("RepoNotFound")
        if repository in self.hub.gated:
            return self._json(
                {"error": "gated"}, 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
            )
        found = self.hub.files(repository, revision)
        if found is None:
            return self._missing("RevisionNotFound")
        commit, files = found
        if resolve:
            return self._file(commit, resolve.group(3), files)
        what, inside = api.group(2), (api.group(4) or "").strip("/")
        if what == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = self._entries(files, inside, recursive)
            return self._json(entries) if entries or not inside else self._missing("EntryNotFound")
        if what == "paths-info":
            asked = (
                json.loads(body)["paths"]
                if "json" in self.headers.get("Content-Type", "")
                else parse_qs(body.decode()).get("paths", [])
            )
            every = {entry["path"]: entry for entry in self._entries(files, "", True)}
            return self._json([every[name] for name in asked if name in every])
        return self._json(
            {
                "_id": "0" * 24,
                "id": repository,
                "author": repository.partition("/")[0],
                "sha": commit,
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": name} for name in files],
            }
        )

    @staticmethod
    def _entries(files, inside, recursive):
        entries = {}
        for name, content in files.items():
            if inside and not name.startswith(inside + "/"):
                continue
            parts = name.split("/")
            for depth in range(len(inside.split("/")) + 1 if inside else 1, len(parts)):
                folder = "/".join(parts[:depth])
                if recursive or depth == (len(inside.split("/")) if inside else 0) + 1:
                    entries[folder] = {
                        "type": "directory",
                        "oid": hashlib.sha1(folder.encode()).hexdigest(),
                        "size": 0,
                        "path": folder,
                    }
            if recursive or len(parts) == (len(inside.split("/")) if inside else 0) + 1:
                entries[name] = {
                    "type": "file",
                    "oid": hashlib.sha1(content).hexdigest(),
                    "size": len(content),
                    "path": name,
                }
        return list(entries.values())

    def _file(self, commit, name, files):
        if name not in files:
            return self._missing("EntryNotFound", {"X-Repo-Commit": commit})
        content, status = files[name], 200
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        start, stop = 0, len(content)
        if asked and asked.group(1):
            start, stop = int(asked.group(1)), min(int(asked.group(2) or len(content) - 1) + 1, len(content))
            if start >= len(content):
                return self._json({}, 416, {"Content-Range": f"bytes */{len(content)}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self.send_response(status)
        for key, value in {**headers, "Content-Length": stop - start}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        size = self.hub.allowed(name, stop - start)
        self.hub.sent_bytes[name] = self.hub.sent_bytes.get(name, 0) + size
        self.wfile.write(content[start : start + size])
        if size < stop - start:
            self.wfile.flush()
            self.close_connection = True

    def _missing(self, code, headers={}):
        self._json({"error": MISSING[code]}, 404, {"X-Error-Code": code, "X-Error-Message": MISSING[code], **headers})

    def _json(self, value, status=200, headers={}):
        content = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
