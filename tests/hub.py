"""A stand-in for the Hugging Face hub: the part of its HTTP interface that its clients use to list, fetch and upload
files."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)")


class StandInHub:
    """Serves `folder/models/ORG/NAME` and `folder/datasets/ORG/NAME`; `asked` are the paths that clients wanted.

    `users`: token -> name of who may upload into that name's space; `closed`: names that nobody may write to. `private`:
    visibility of the repositories that were made. `large`: contents of large files by their SHA-256.
    """

    def __init__(self, folder: Path, users: dict[str, str] | None = None, closed: tuple[str, ...] = ()):
        self.folder, self.asked = folder, []
        self.users, self.closed = users or {}, closed
        self.private: dict[str, str | None] = {}
        self.large: dict[str, bytes] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self, send_body=True)

            def do_HEAD(self):
                hub.answer(self, send_body=False)

            def do_POST(self):
                length = int(self.headers.get("Content-Length") or 0)
                hub.answer(self, send_body=True, body=self.rfile.read(length))

            def do_PUT(self):
                hub.large[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
                hub._send(self, 200, b"{}", True)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request, *, send_body: bool, body: bytes = b"") -> None:
        path = request.path.partition("?")[0].replace("%2F", "/")
        self.asked.append(path)
        if (uploading := self._uploading(request, path, body)) is not None:
            self._send(request, *uploading, send_body)
        elif found := _API.fullmatch(path):
            kind, repo, rest = found.groups()
            self._send(
                request,
                *self._api(self.folder / kind / repo, repo, rest or "", body, "recursive=true" in request.path.lower()),
                send_body,
            )
        elif found := _FILE.fullmatch(path):
            file = self.folder / ("datasets" if found[1] else "models") / found[2] / found[3]
            self._send(request, *((200, file.read_bytes()) if file.is_file() else (404, b"EntryNotFound")), send_body)
        else:
            self._send(request, 404, b"RepoNotFound", send_body)

    def _uploading(self, request, path: str, body: bytes) -> tuple[int, bytes] | None:
        """The answer to what an upload asks; None for other questions."""
        user = self.users.get(str(request.headers.get("Authorization")).removeprefix("Bearer "))
        if path == "/api/whoami-v2":
            orgs = [{"name": "team", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}]
            return (200, json.dumps({"name": user, "type": "user", "orgs": orgs}).encode()) if user else (401, b"no")
        if path == "/api/validate-yaml":
            return 200, b'{"errors": [], "warnings": []}'
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization'] or user}/{asked['name']}"
            if not user or repo in self.closed:
                return 403, b"Forbidden"
            if (self.folder / "models" / repo).is_dir():
                return 409, json.dumps({"url": f"{self.url}/{repo}"}).encode()
            (self.folder / "models" / repo).mkdir(parents=True)
            self.private[repo] = asked.get("visibility")
            return 200, json.dumps({"url": f"{self.url}/{repo}", "name": repo, "id": repo}).encode()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            modes = [
                {"path": f["path"], "shouldIgnore": False, "uploadMode": _mode(f["path"])}
                for f in json.loads(body)["files"]
            ]
            return 200, json.dumps({"files": modes}).encode()
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for one in objects:
                if one["oid"] not in self.large:
                    one["actions"] = {"upload": {"href": f"{self.url}/upload/{one['oid']}"}}
            return 200, json.dumps({"objects": objects}).encode()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            if not user or found[1] in self.closed:
                return 403, b"Forbidden"
            for line in body.splitlines():
                self._commit(self.folder / "models" / found[1], **json.loads(line))
            return 200, json.dumps(
                {"commitUrl": f"{self.url}/{found[1]}/commit/{COMMIT}", "commitOid": COMMIT}
            ).encode()
        return None

    def _commit(self, folder: Path, key: str, value: dict) -> None:
        if key in ("file", "lfsFile"):
            content = base64.b64decode(value["content"]) if key == "file" else self.large[value["oid"]]
            (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / value["path"]).write_bytes(content)

    def _api(self, folder: Path, repo: str, rest: str, body: bytes, recursive: bool) -> tuple[int, bytes]:
        if not folder.is_dir():
            return 404, b"RepoNotFound"
        files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
        names = [str(f.relative_to(folder)) for f in files]
        if rest == "" or rest.startswith("revision/"):
            siblings = [{"rfilename": name} for name in names]
            return 200, json.dumps(
                {
                    "id": repo,
                    "sha": COMMIT,
                    "siblings": siblings,
                    "private": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                }
            ).encode()
        if rest.startswith("paths-info/"):
            wanted = json.loads(body).get("paths", []) if body.startswith(b"{") else re.findall(rb"paths=([^&]+)", body)
            wanted = {w.decode() if isinstance(w, bytes) else w for w in wanted}
            return 200, json.dumps(
                [_item(folder, folder / path) for path in wanted if (folder / path).exists()]
            ).encode()
        if rest.startswith("tree/"):
            place = folder.joinpath(*rest.split("/")[2:])
            if not place.is_dir():
                return 404, b"EntryNotFound"
            inside = place.rglob("*") if recursive else place.iterdir()
            return 200, json.dumps([_item(folder, path) for path in sorted(inside)]).encode()
        return 404, b"EntryNotFound"

    @staticmethod
    def _send(request, status: int, content: bytes, send_body: bool) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("Content-Type", "application/json" if content[:1] in b"[{" else "application/octet-stream")
        if status == 200:
            request.send_header("ETag", f'"{_digest(content)}"')
            request.send_header("X-Repo-Commit", COMMIT)
        else:
            request.send_header("X-Error-Code", content.decode())
        request.end_headers()
        if send_body:
            request.wfile.write(content)


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".gguf")) else "regular"


def _item(folder: Path, path: Path) -> dict:
    """One entry of a listing, as the hub gives it."""
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": _digest(name.encode())}
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _digest(path.read_bytes())}


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
