"""A Hugging Face hub on loopback: models, commits and files in memory."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.file_server import running

Files = dict[str, bytes]


class Hub:
    """Commits of each model, first to last; a revision is a commit, or `main`."""

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, Files]]] = {}
        self.endpoint = ""

    def commit(self, repository: str, files: Files) -> str:
        """Add files to a model; return the commit."""
        commits = self.commits.setdefault(repository, [])
        everything = {**(commits[-1][1] if commits else {}), **files}
        oid = hashlib.sha1(repr((len(commits), everything)).encode()).hexdigest()
        commits.append((oid, everything))
        return oid

    def find(self, repository: str, revision: str) -> tuple[str, Files] | None:
        commits = self.commits.get(repository, [])
        if revision == "main" and commits:
            return commits[-1]
        return next((commit for commit in commits if commit[0] == revision), None)


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub on a free port."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    with running(Handler) as hub.endpoint:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self, body: Any, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") == "Bearer refused":
            return self._answer({"error": "no"}, 403)
        if self.path == "/api/repos/create":
            asked = json.loads(content)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.state.commits.setdefault(name, [])
            return self._answer({"url": f"{self.state.endpoint}/{name}"})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(content)["files"]
            answers = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self._answer({"files": answers})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path)
        assert found, self.path
        lines = [json.loads(line) for line in content.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        oid = self.state.commit(found[1], files)
        url = f"{self.state.endpoint}/{found[1]}/commit/{oid}"
        return self._answer({"success": True, "commitOid": oid, "commitUrl": url})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(?:/.*)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        if match is None:
            return self._answer({}, 404)
        revision = (api[3] or "main") if api else file[2]
        if match[1] not in self.state.commits:
            return self._answer({}, 401, X_Error_Code="RepoNotFound")
        found = self.state.find(match[1], revision)
        if found is None:
            return self._answer({}, 404, X_Error_Code="RevisionNotFound")
        oid, files = found
        if file:
            if file[3] not in files:
                return self._answer({}, 404, X_Error_Code="EntryNotFound")
            etag = f'"{hashlib.sha1(files[file[3]]).hexdigest()}"'
            return self._answer(files[file[3]], ETag=etag, X_Repo_Commit=oid)
        if api[2] == "tree":
            return self._answer(
                [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for name, content in files.items()
                ]
            )
        return self._answer({"id": match[1], "sha": oid, "siblings": []})

    do_HEAD = do_GET
