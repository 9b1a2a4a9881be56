r"""A Hub in one process: what `huggingface_hub` asks of it, over real HTTP, with the files in memory.

Every commit is kept, so that a pinned revision can be pulled. `requests` remembers what was asked, for tests to look at.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Repository:
    def __init__(self, private):
        self.private, self.commits = private, {}
        self.commit({}, "initial commit")

    def commit(self, files, message):
        sha = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)}".encode()).hexdigest()
        self.commits[sha] = (files, message)
        self.head = sha
        return sha

    def at(self, revision):
        sha = self.head if revision == "main" else revision
        return sha, self.commits[sha][0]


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.blobs, self.requests = {}, {}, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


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
            self.wfile.write(body)

    def missing(self, code):
        self.answer({"error": code}, 404, X_Error_Code=code, X_Error_Message=code)

    def handle_any(self):
        hub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        hub.requests.append((self.command, path, body, self.headers.get("Authorization")))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            name = name if "/" in name else f"me/{name}"
            if name in hub.repositories:
                return self.answer({"error": "exists"}, 409)
            hub.repositories[name] = Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
            return self.answer({"url": f"{hub.url}/{name}", "name": name, "id": name})
        if path == "/api/whoami-v2":
            return self.answer({"name": "me", "type": "user", "orgs": []})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.command == "PUT" and path.startswith("/blobs/"):
            hub.blobs[path.rpartition("/")[2]] = body
            return self.answer()
        if path.startswith("/verify/"):
            return self.answer()
        match = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?(/.*)?", path)
        repository = match and hub.repositories.get(match[1])
        if not repository:
            return self.missing("RepoNotFound")
        return self.repository(match[1], repository, match[2] or "", body)

    def repository(self, name, repository, rest, body):
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
        if rest.startswith("/commit/"):
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            files, message = dict(repository.commits[repository.head][0]), ""
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    message = value["summary"]
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.blobs[value["oid"]]
                elif line["key"] == "deletedFile":
                    files.pop(value["path"], None)
            sha = repository.commit(files, message)
            return self.answer({"commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha, "hookOutput": ""})
        if match := re.fullmatch(r"/resolve/([^/]+)/(.+)", rest):
            sha, files = repository.at(match[1])
            if match[2] not in files:
                return self.missing("EntryNotFound")
            content = files[match[2]]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            size = {"X_Linked_Size": str(len(content)), "X_Linked_Etag": etag, "Content_Length": str(len(content))}
            return self.answer(content, ETag=etag, X_Repo_Commit=sha, **size)
        if match := re.fullmatch(r"/tree/([^/]+)(/.*)?", rest):
            _, files = repository.at(match[1])
            entries = [
                {"type": "file", "path": path, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for path, c in files.items()
            ]
            return self.answer(entries)
        if match := re.fullmatch(r"(?:/revision/([^/]+))?", rest):
            sha, files = repository.at(match[1] or "main")
            siblings = [{"rfilename": path} for path in files]
            return self.answer(
                {"id": name, "modelId": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}
            )
        return self.missing("EntryNotFound")

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


def environment(hub, cache):
    r"""What a process needs to take `hub` for the Hub."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "anything",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(cache),
    }
