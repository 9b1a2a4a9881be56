r"""A Hub in one process: what `huggingface_hub` asks of it, over real HTTP, with the files in memory.

Every commit is kept, so that a pinned revision can be pulled. `requests` remembers what was asked, for tests to look at.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Repository:
    def __init__(self, private):
        self.private, self.commits, self.branches = private, {}, {}
        self.commit({}, "initial commit", "main")

    def commit(self, files, message, branch):
        sha = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)}".encode()).hexdigest()
        self.commits[sha] = (files, message)
        self.branches[branch] = sha
        return sha

    @property
    def head(self):
        return self.branches["main"]

    @property
    def files(self):
        return self.commits[self.head][0]

    def find(self, revision):
        return self.branches.get(revision, revision)


class Hub(ThreadingHTTPServer):
    r"""`token`, where it is set, is the one that may write, and read what is private. `faults` maps a pattern of "METHOD path"
    to a list of what happens to the next requests of that kind: a status, "cut", the end of the connection half-way, or
    "gone", its end before an answer."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.blobs, self.requests, self.token, self.faults = {}, {}, [], None, {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, request):
        for pattern, faults in self.faults.items():
            if faults and re.search(pattern, request):
                return faults.pop(0)
        return None

    def handle_error(self, request, client_address):
        pass  # connections that are cut on purpose


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, body=b"", status=200, **headers):
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.cut else body)
            if self.cut:
                self.hang_up()

    def missing(self, code, status=404, **headers):
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code, **headers)

    def hang_up(self):
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def handle_any(self):
        hub = self.server
        path, _, query = self.path.partition("?")
        path = unquote(path)
        fault = hub.fault(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        self.cut = fault == "cut"
        if self.cut and length:
            self.rfile.read(length // 2)
            return self.hang_up()
        body = self.rfile.read(length)
        hub.requests.append((self.command, self.path, body, self.headers.get("Authorization")))
        if fault == "gone":
            return self.hang_up()
        if isinstance(fault, int):
            return self.answer({"error": f"a fault of {fault}"}, fault)
        allowed = hub.token is None or self.headers.get("Authorization") == f"Bearer {hub.token}"
        if not allowed and (self.command == "POST" and not path.startswith("/verify/") or path.startswith("/api/whoami")):
            return self.answer({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            name = name if "/" in name else f"me/{name}"
            if asked.get("type") == "space":
                if asked.get("sdk") != "gradio":
                    return self.answer({"error": "a Space must have an sdk"}, 400)
                name = f"spaces/{name}"
            if name in hub.repositories:
                return self.answer({"error": "You already created this model repo", "url": f"{hub.url}/{name}"}, 409)
            hub.repositories[name] = Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
            return self.answer({"url": f"{hub.url}/{name}", "name": name, "id": name.removeprefix("spaces/")})
        if path == "/api/whoami-v2":
            return self.answer({"name": "me", "type": "user", "orgs": []})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.command == "PUT" and path.startswith("/blobs/"):
            hub.blobs[path.rpartition("/")[2]] = body
            return self.answer()
        if path.startswith("/verify/"):
            return self.answer()
        match = re.fullmatch(r"/(?:api/models/|(?:api/)?(spaces/))?([^/]+/[^/]+?)(?:\.git)?(/.*)?", path)
        name = match and (match[1] or "") + match[2]
        repository = name and hub.repositories.get(name)
        if not repository or (repository.private and not allowed):
            return self.missing("RepoNotFound", 404 if allowed else 401)
        return self.repository(name, repository, match[3] or "", body, query)

    def repository(self, name, repository, rest, body, query):
        hub = self.server
        if rest.startswith("/preupload/"):
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["size"] > 10_000 else "regular"} for f in files]
            return self.answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        if rest == "/info/lfs/objects/batch":
            actions = lambda oid: {  # noqa: E731
                "upload": {"href": f"{hub.url}/blobs/{oid}"},
                "verify": {"href": f"{hub.url}/verify/{oid}"},
            }
            objects = [{**o, "actions": actions(o["oid"])} for o in json.loads(body)["objects"]]
            return self.answer({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/branch/(.+)", rest):
            if match[1] in repository.branches:
                return self.answer({"error": "Reference already exists"}, 409)
            repository.branches[match[1]] = repository.head
            return self.answer({})
        if match := re.fullmatch(r"/commit/(.+)", rest):
            return self.commit(name, repository, match[1], body, "create_pr=1" in query)
        if match := re.fullmatch(r"(?:/(?:revision|tree|resolve)/(refs/pr/\d+|[^/]+)(/.*)?)?", rest):
            sha = repository.find(match[1] or "main")
            if sha not in repository.commits:
                return self.missing("RevisionNotFound")
            files = repository.commits[sha][0]
            return getattr(self, rest.split("/")[1] if rest else "revision")(name, repository, sha, files, match[2])
        return self.missing("EntryNotFound")

    def commit(self, name, repository, branch, body, is_pull_request):
        hub, lines = self.server, [json.loads(line) for line in body.splitlines() if line.strip()]
        header = lines[0]["value"]
        if branch not in repository.branches:
            return self.missing("RevisionNotFound")
        if header.get("parentCommit") not in (None, repository.branches[branch]):
            return self.answer({"error": "A commit has happened since. Please refresh and try again."}, 412)
        files = dict(repository.commits[repository.branches[branch]][0])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        number = sum(name.startswith("refs/pr/") for name in repository.branches) + 1
        sha = repository.commit(files, header["summary"], f"refs/pr/{number}" if is_pull_request else branch)
        answer = {"commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha, "hookOutput": ""}
        return self.answer(answer | ({"pullRequestUrl": f"{hub.url}/{name}/discussions/{number}"} if is_pull_request else {}))

    def resolve(self, name, repository, sha, files, path):
        if path[1:] not in files:
            return self.missing("EntryNotFound", X_Repo_Commit=sha)
        content, start = files[path[1:]], 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        size = {"X_Linked_Size": str(len(content)), "X_Linked_Etag": etag, "Content_Length": str(len(content) - start)}
        size |= {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        return self.answer(content[start:], 206 if start else 200, ETag=etag, X_Repo_Commit=sha, **size)

    def tree(self, name, repository, sha, files, path):
        entries = [{"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for p, c in files.items()]
        return self.answer(entries)

    def revision(self, name, repository, sha, files, path):
        siblings = [{"rfilename": path} for path in files]
        return self.answer(
            {
                "id": name.removeprefix("spaces/"),
                "modelId": name,
                "sha": sha,
                "private": repository.private,
                "siblings": siblings,
                "tags": [],
            }
        )

    do_GET = do_HEAD = do_POST = do_PUT = handle_any


@contextmanager
def local_hub():
    r"""A running `Hub`; point the client at it with `environment`."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def environment(hub, cache, token="anything"):
    r"""What a process needs to take `hub` for the Hub."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(cache),
    }


def upload(hub, name, folder):
    r"""Files as somebody else may have put them there."""
    hub.repositories[name] = Repository(private=False)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.repositories[name].commit(files, "as it is", "main")
