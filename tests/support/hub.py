"""A stand-in for the Hugging Face hub: as much of its interface as uploads and downloads of a model's files use."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

TOKEN = "a-token"


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by name, each a list of commits, the oldest first. A commit is the files' contents by name.

    requests: method and path of each request. private: repositories that need TOKEN.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}  # files uploaded as Git LFS does, by their SHA-256
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def revision_of(files: dict[str, bytes]) -> str:
    """Hash of a commit."""
    content = b"".join(name.encode() + files[name] for name in sorted(files))
    return hashlib.sha1(content).hexdigest()


@contextlib.contextmanager
def serve(monkeypatch, folder: Path) -> Iterator[Hub]:
    """The hub that huggingface_hub in this process talks to, logged out, with its cache in `folder`."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with Hub() as hub:
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_HUB_DISABLE_XET": True,
            "HF_TOKEN_PATH": str(folder / "token"),
            "HF_STORED_TOKENS_PATH": str(folder / "tokens"),
        }.items():
            monkeypatch.setattr(constants, name, value, raising=False)  # some are of later versions
        monkeypatch.delenv("HF_TOKEN", raising=False)
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, status: int = 200, **content) -> None:
        self._answer(status, json.dumps(content).encode(), Content_Type="application/json")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _start(self) -> str:
        self.server.requests.append(f"{self.command} {self.path}")
        return urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)

    @property
    def _logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_GET(self):
        where = self._start()
        if "Authorization" in self.headers and not self._logged_in:
            return self._answer(401)
        if where.startswith("/api/models/"):
            name = where.removeprefix("/api/models/")
            return self._json(id=name, private=name in self.server.private)
        name, _, rest = where[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        commits = self.server.repositories.get(name)
        if commits is None or (name in self.server.private and not self._logged_in):
            return self._answer(404, X_Error_Code="RepoNotFound")
        found = {revision_of(files): files for files in commits} | {"main": commits[-1]}
        if revision not in found:
            return self._answer(404, X_Error_Code="RevisionNotFound")
        headers = {"X_Repo_Commit": revision_of(found[revision])}
        if file not in found[revision]:
            return self._answer(404, X_Error_Code="EntryNotFound", **headers)
        content = found[revision][file]
        self._answer(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', **headers)

    do_HEAD = do_GET

    def do_PUT(self):
        where, content = self._start(), self._body()
        assert where == f"/upload/{hashlib.sha256(content).hexdigest()}"
        self.server.large[where.rpartition("/")[2]] = content
        self._answer(200)

    def do_POST(self):
        where, body = self._start(), self._body()
        if not self._logged_in:
            return self._answer(401)
        if where == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            if name in self.server.repositories:
                return self._json(409, url=f"{self.server.url}/{name}")
            self.server.repositories[name] = [{}]
            if given.get("private") or given.get("visibility") == "private":  # by version of huggingface_hub
                self.server.private.add(name)
            return self._json(url=f"{self.server.url}/{name}", name=name)
        if where == "/api/validate-yaml":  # of cards
            return self._json(errors=[], warnings=[])
        if where.endswith("/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/upload/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self._json(transfer="basic", objects=objects)
        name, _, action = where.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
        if name not in self.server.repositories:
            return self._answer(404, X_Error_Code="RepoNotFound")
        if action == "preupload":
            large = lambda path: "lfs" if path.endswith((".safetensors", ".png")) else "regular"
            files = [each["path"] for each in json.loads(body)["files"]]
            return self._json(files=[{"path": x, "uploadMode": large(x), "shouldIgnore": False} for x in files])
        assert action == "commit", where
        files = dict(self.server.repositories[name][-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.server.repositories[name].append(files)
        revision = revision_of(files)
        self._json(success=True, commitOid=revision, commitUrl=f"{self.server.url}/{name}/commit/{revision}")
