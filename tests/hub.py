"""A local stub of the Hugging Face Hub: repositories, uploads (also of large files), downloads.

It answers the requests that `huggingface_hub` makes of a model repository, checks tokens and the
card's metadata, and keeps everything in memory.
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
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants

TOKEN = "hf_writer"
LARGE = (".safetensors", ".png", ".jpg")


@dataclass
class Repository:
    """branches: name -> commit; commits: hash -> files; gated and private as on the hub."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        number = f"{len(self.commits)} {sorted(files)} {branch}"
        name = hashlib.sha1(number.encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        self.messages.append(message)
        return name

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[revision]]


class Hub:
    """repos by name. fails: status of every answer. damaged, cut: files that are sent as other
    bytes, or in half.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.fails = 0
        self.damaged: set[str] = set()
        self.cut: set[str] = set()
        self.url = ""

    def repository(self, name: str, files: dict[str, bytes], **about: Any) -> Repository:
        """A repository with these files on `main`."""
        repo = self.repos[name] = Repository(**about)
        repo.commit(files)
        return repo


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", said: str = "") -> None:
        super().__init__(said)
        self.status = status
        self.headers = {"X-Error-Code": code} if code else {}
        if said:
            self.headers["X-Error-Message"] = said


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else b""
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        self.hub.requests.append((self.command, split.path))
        try:
            if self.hub.fails:
                raise _Refused(self.hub.fails)
            status, data, headers = self._routed(split.path)
        except _Refused as e:
            status, headers = e.status, e.headers
            data = json.dumps({"error": str(e)}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            cut = split.path.rpartition("/")[2] in self.hub.cut
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = cut

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _routed(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        routes = {
            r"/api/repos/create": self._create,
            r"/api/agent-harnesses": lambda: self._json({}),
            r"/api/validate-yaml": self._validate,
            r"/api/whoami-v2": self._whoami,
            r"/api/models/([^/]+/[^/]+)/branch/(.+)": self._branch,
            r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?": self._tree,
            r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)": self._preupload,
            r"/api/models/([^/]+/[^/]+)/commit/([^/]+)": self._commit,
            r"/api/models/([^/]+/[^/]+)": self._info,
            r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"/blobs/([0-9a-f]+)": self._put,
            r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self._file,
        }
        for pattern, route in routes.items():
            if found := re.fullmatch(pattern, path):
                answer: tuple[int, bytes, dict[str, str]] = route(*map(unquote, found.groups()))
                return answer
        raise AssertionError(f"the stub knows no {self.command} {path}")

    def log_message(self, *args: Any) -> None:
        pass

    # -- who may do what ---------------------------------------------------------------------------

    @property
    def _logged_in(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _writer(self) -> None:
        if not self._logged_in:
            raise _Refused(401, said="Invalid credentials in Authorization header")

    def _repo(self, name: str) -> Repository:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._logged_in):
            raise _Refused(404 if self._logged_in else 401, "RepoNotFound")
        if repo.gated and not self._logged_in:
            raise _Refused(401, "GatedRepo")
        return repo

    def _revision(self, repo: Repository, revision: str) -> str:
        commit = repo.at(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound")
        return commit

    # -- the requests ------------------------------------------------------------------------------

    def _json(self, value: Any, status: int = 200) -> tuple[int, bytes, dict[str, str]]:
        return status, json.dumps(value).encode(), {"Content-Type": "application/json"}

    def _create(self) -> tuple[int, bytes, dict[str, str]]:
        self._writer()
        asked = json.loads(self.body)
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        if name in self.hub.repos:
            return self._json(url, 409)
        repo = self.hub.repository(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        repo.private = asked.get("visibility") == "private"
        return self._json(url)

    def _validate(self) -> tuple[int, bytes, dict[str, str]]:
        _, block, _ = json.loads(self.body)["content"].split("---\n", 2)
        found = yaml.safe_load(block)
        wrong = [] if isinstance(found, dict) else [{"message": "not a mapping"}]
        if isinstance(found, dict) and found.get("license") == "nosuch":
            wrong = [{"message": '"license" must be one of apache-2.0, mit, ...'}]
        return self._json({"errors": wrong, "warnings": []}, 400 if wrong else 200)

    def _branch(self, name: str, branch: str) -> tuple[int, bytes, dict[str, str]]:
        self._writer()
        repo = self._repo(name)
        if branch in repo.branches:
            return self._json({}, 409)
        repo.branches[branch] = repo.branches["main"]
        return self._json({})

    def _tree(self, name: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        repo = self._repo(name)
        files = repo.commits[self._revision(repo, revision)]
        return self._json(
            [
                {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for p, d in files.items()
            ]
        )

    def _info(self, name: str) -> tuple[int, bytes, dict[str, str]]:
        repo = self._repo(name)
        return self._json({"id": name, "sha": repo.branches["main"], "private": repo.private})

    def _whoami(self) -> tuple[int, bytes, dict[str, str]]:
        self._writer()
        return self._json({"name": "me", "type": "user"})

    def _preupload(self, name: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        self._writer()
        self._revision(self._repo(name), revision)
        files = [f["path"] for f in json.loads(self.body)["files"]]
        modes = {p: "lfs" if p.endswith(LARGE) else "regular" for p in files}
        return self._json(
            {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False}
                       for p, m in modes.items()]}
        )  # fmt: skip

    def _batch(self, name: str) -> tuple[int, bytes, dict[str, str]]:
        self._writer()
        self._repo(name)
        return self._json(
            {
                "transfer": "basic",
                "objects": [
                    {**o, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{o['oid']}"}}}
                    for o in json.loads(self.body)["objects"]
                ],
            }
        )

    def _put(self, oid: str) -> tuple[int, bytes, dict[str, str]]:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.blobs[oid] = self.body
        return 200, b"", {}

    def _commit(self, name: str, branch: str) -> tuple[int, bytes, dict[str, str]]:
        self._writer()
        repo = self._repo(name)
        files, message = dict(repo.commits[self._revision(repo, branch)]), ""
        for line in self.body.splitlines():
            key, value = (row := json.loads(line))["key"], row["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            else:
                assert key == "deletedFile"
                del files[value["path"]]
        target = "refs/pr/1" if self.query.get("create_pr") else branch
        commit = repo.commit(files, target, message)
        return self._json(
            {
                "commitOid": commit,
                "commitUrl": f"{self.hub.url}/{name}/commit/{commit}",
                "pullRequestUrl": f"{self.hub.url}/{name}/discussions/1",
            }
        )

    def _file(self, name: str, revision: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        repo = self._repo(name)
        commit = self._revision(repo, revision)
        known = {"X-Repo-Commit": commit}
        if path not in repo.commits[commit]:
            missing = _Refused(404, "EntryNotFound")
            missing.headers |= known
            raise missing
        data = repo.commits[commit][path]
        if path in self.hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        return 200, data, {**known, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}


@contextmanager
def serving(cache: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stub on a free port of this machine, which `huggingface_hub` now takes for the hub."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )  # fmt: skip
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    # what newer versions keep of the hub in the user's own folder
    patch.setattr(constants, "AGENT_HARNESSES_PATH", str(cache / "harnesses"), raising=False)
    patch.delenv("HF_TOKEN", raising=False)
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
