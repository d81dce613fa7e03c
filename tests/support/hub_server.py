"""A small local hub: the part of the Hugging Face HTTP API that huggingface_hub and datasets use."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from tasks.checkpoints.hub import hash_git_blob

Tree = dict[str, bytes]


@dataclass
class Hub:
    """Repositories in memory: commits by id, branches by name; `requests` records every request.

    A dataset's name begins with `datasets/`.
    """

    url: str = ""
    commits: dict[tuple[str, str], Tree] = field(default_factory=dict)
    refs: dict[tuple[str, str], str] = field(default_factory=dict)
    tampered: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def commit(self, repo: str, tree: Tree, *, branch: str = "main") -> str:
        """Store a tree, point the branch at it, and return its 40-hex id."""
        listing = json.dumps({name: hash_git_blob(content) for name, content in sorted(tree.items())})
        commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        self.commits[repo, commit] = dict(tree)
        self.refs[repo, branch] = commit
        return commit

    def has_repo(self, repo: str) -> bool:
        return any(name == repo for name, _ in self.refs)

    def find_tree(self, repo: str, revision: str) -> tuple[str, Tree] | None:
        commit = self.refs.get((repo, revision), revision)
        tree = self.commits.get((repo, commit))
        return None if tree is None else (commit, tree)


def list_siblings(tree: Tree) -> list[dict[str, object]]:
    """List a tree as the hub does with blobs=true: a git blob id for all, sha256 for large files."""
    rows: list[dict[str, object]] = []
    for name, content in tree.items():
        row: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": hash_git_blob(content)}
        if name.endswith((".safetensors", ".bin")):
            row["lfs"] = {
                "sha256": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 130,
            }
        rows.append(row)
    return rows


def list_tree(tree: Tree, folder: str) -> list[dict[str, object]]:
    """List the files and folders under a folder as the hub's tree does, all levels."""
    prefix = f"{folder}/" if folder else ""
    inside = {name: content for name, content in tree.items() if name.startswith(prefix)}
    folders = {str(parent) for name in inside for parent in PurePosixPath(name).parents} - {".", folder}
    return [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)] + [
        {"type": "file", "path": name, "size": len(content), "oid": hash_git_blob(content)}
        for name, content in inside.items()
    ]


def make_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:  # noqa: C901  # a class with its methods, no branches
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            for kind, prefix in (("/api/models/", ""), ("/api/datasets/", "datasets/")):
                if path.startswith(kind):
                    self.send_repository(prefix, path.removeprefix(kind))
                    return
            if path.startswith("/api/"):
                self.answer(b"{}", {}, status=404)
            else:
                repo, _, rest = path.removeprefix("/").partition("/resolve/")
                revision, _, name = rest.partition("/")
                self.send_file(repo, revision, name)

        do_HEAD = do_GET  # noqa: N815 - http.server's own name

        def do_POST(self) -> None:
            """Answer which of the asked paths there are; what else a client posts is of no use here."""
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            repo, found, revision = path.removeprefix("/api/").partition("/paths-info/")
            listing = hub.find_tree(repo, revision)
            if not found or listing is None:
                self.answer(b"{}", {}, status=404)
                return
            entries = [entry for entry in list_tree(listing[1], "") if entry["path"] in body.get("paths", ())]
            self.answer(json.dumps(entries).encode(), {"Content-Type": "application/json"})

        def send_repository(self, prefix: str, rest: str) -> None:
            repo, found, place = rest.partition("/tree/")
            if not found:
                repo, _, revision = rest.partition("/revision/")
                self.send_model(prefix + repo, revision or "main")
                return
            revision, _, folder = place.partition("/")
            listing = hub.find_tree(prefix + repo, revision)
            if listing is None:
                self.refuse("RevisionNotFound")
                return
            self.answer(json.dumps(list_tree(listing[1], folder)).encode(), {"Content-Type": "application/json"})

        def send_model(self, repo: str, revision: str) -> None:
            listing = hub.find_tree(repo, revision)
            if listing is None:
                self.refuse("RevisionNotFound" if hub.has_repo(repo) else "RepoNotFound")
                return
            commit, tree = listing
            body = {"_id": "1", "id": repo, "modelId": repo, "sha": commit, "private": False, "tags": []}
            self.answer(
                json.dumps(body | {"siblings": list_siblings(tree)}).encode(), {"Content-Type": "application/json"}
            )

        def send_file(self, repo: str, revision: str, name: str) -> None:
            listing = hub.find_tree(repo, revision)
            if listing is None or name not in listing[1]:
                self.refuse("EntryNotFound" if listing else "RevisionNotFound")
                return
            commit, tree = listing
            content = hub.tampered.get(name, tree[name])
            self.answer(content, {"ETag": f'"{hash_git_blob(content)}"', "X-Repo-Commit": commit})

        def refuse(self, code: str) -> None:
            self.answer(b"{}", {"X-Error-Code": code}, status=404)

        def answer(self, body: bytes, headers: dict[str, str], *, status: int = 200) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's own name
            """Tests print nothing."""

    return Handler


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve a hub on a free port of 127.0.0.1 for the length of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
