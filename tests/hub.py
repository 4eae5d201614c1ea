"""A stand-in for the Hugging Face hub: the part of its HTTP interface that its clients use to list and fetch files."""

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
    """Serves `folder/models/ORG/NAME` and `folder/datasets/ORG/NAME`; `asked` are the paths that clients wanted."""

    def __init__(self, folder: Path):
        self.folder, self.asked, self.private = folder, [], {}
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

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _take(self, path: str, body: bytes) -> dict | None:
        """What an upload is answered: repositories are made, and committed files written. None for other requests."""
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
            (self.folder / "models" / name).mkdir(parents=True, exist_ok=True)
            self.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
            return {"url": f"{self.url}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/whoami-v2":
            return {"name": "somebody", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}}
        found = _API.fullmatch(path)
        kind, repo, rest = found.groups() if found else ("", "", "")
        if (rest or "").startswith("preupload/"):
            files = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if (rest or "").startswith("commit/"):
            for entry in (json.loads(line) for line in body.splitlines()):
                if entry["key"] == "file":
                    file = self.folder / kind / repo / entry["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(entry["value"]["content"]))
            return {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.url}/{repo}/commit/{COMMIT}"}
        return None

    def answer(self, request, *, send_body: bool, body: bytes = b"") -> None:
        path = request.path.partition("?")[0].replace("%2F", "/")
        self.asked.append(path)
        if (taken := self._take(path, body)) is not None:
            self._send(request, 200, json.dumps(taken).encode(), send_body)
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


def _item(folder: Path, path: Path) -> dict:
    """One entry of a listing, as the hub gives it."""
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": _digest(name.encode())}
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _digest(path.read_bytes())}


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
