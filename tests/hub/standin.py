"""A hub on 127.0.0.1 that speaks the real protocol to an unmodified huggingface_hub client.

What huggingface_hub 2.4.0 asks a hub for, and no more: repository info, tree (in pages), commits,
resolve with ranges and redirects to a second host that must not see the token, LFS batch (basic and
multipart), pre-upload, commit, branches, whoami, auth-check. Repositories live in memory. `Fault`s
make answers go wrong: a status, a connection cut after some bytes, other bytes than promised.
Xet is not announced, so the client takes the plain HTTP path.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".gguf", ".bin", ".parquet", ".model", ".dat")
DATE = "2026-11-22T00:00:00.000Z"


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    return path.endswith(LFS_SUFFIXES) or size > 10_000_000


@dataclass
class Repo:
    """`commits` maps a commit to (parent, title, {path: content}), `branches` a name to one."""

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    card: dict = field(default_factory=dict)
    commits: dict[str, tuple[str | None, str, dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], title: str = "change") -> str:
        parent = self.branches.get(branch)
        tree = sorted(
            (path, hashlib.sha256(content).hexdigest()) for path, content in files.items()
        )
        seed = json.dumps([self.kind, self.id, parent, title, len(self.commits), tree])
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[oid] = (parent, title, dict(files))
        self.branches[branch] = oid
        return oid

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[branch]][2]

    def history(self, oid: str | None) -> list[str]:
        """Commits from `oid` back to the first."""
        found = []
        while oid is not None:
            found.append(oid)
            oid = self.commits[oid][0]
        return found


@dataclass
class Fault:
    """Makes the next `times` answers go wrong whose "METHOD /path" the regex `match` finds.

    `status`: answer with it; `cut`: close the connection after so many bytes of the body;
    `reset`: the same, but with a TCP reset; `garble`: change the body's bytes, not its length.
    """

    match: str
    status: int = 0
    cut: int = -1
    reset: bool = False
    garble: bool = False
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """The stand-in: `with Hub() as hub: … hub.url …`. Tokens are keys of `users`."""

    def __init__(self) -> None:
        self.users: dict[str, dict] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.multipart_over = 1 << 40
        self.page = 1000
        self.lock = threading.RLock()
        self.plain: dict[str, bytes] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        # The same server under another name is another host to the client, as the hub's CDN is.
        self.cdn = f"http://localhost:{self.server.server_address[1]}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add_user(
        self, token: str, name: str, orgs: tuple[str, ...] = (), role: str = "write"
    ) -> None:
        self.users[token] = {"name": name, "orgs": orgs, "role": role}

    def add_repo(self, repo_id: str, files: dict[str, bytes], kind: str = "model", **kw) -> Repo:
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, **kw)
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        if files:
            repo.commit("main", {**repo.files(), **files}, "files")
        return repo

    def requests(self, pattern: str) -> list[tuple[str, str, dict[str, str]]]:
        """The requests so far, as (method, path, headers), whose "METHOD /path" `pattern` finds."""
        return [entry for entry in self.log if re.search(pattern, f"{entry[0]} {entry[1]}")]

    def store(self, content: bytes) -> str:
        oid = hashlib.sha256(content).hexdigest()
        self.objects[oid] = content
        return oid


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message or code


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """The request handler class bound to `hub`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        # -- one request ---------------------------------------------------------------------
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if self.headers.get("Transfer-Encoding") == "chunked":
                self.body = self.read_chunked()
            else:
                self.body = self.rfile.read(length)
            parts = urlsplit(self.path)
            self.route, self.query = unquote(parts.path), parse_qs(parts.query)
            self.raw_route = parts.path
            with hub.lock:
                hub.log.append((self.command, self.route, dict(self.headers.items())))
                self.fault = self.next_fault()
                try:
                    if self.fault and self.fault.status:
                        reply = (self.fault.status, b"{}", self.fault.headers)
                    else:
                        reply = self.dispatch()
                except Refused as refused:
                    headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
                    body = json.dumps({"error": refused.message}).encode()
                    reply = (refused.status, body, {k: v for k, v in headers.items() if v})
            status, body, headers = reply
            self.send(status, body, headers)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

        def read_chunked(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def next_fault(self) -> Fault | None:
            for fault in hub.faults:
                if fault.times > 0 and re.search(fault.match, f"{self.command} {self.route}"):
                    fault.times -= 1
                    return fault
            return None

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            fault = self.fault
            if fault and fault.garble:
                body = bytes(byte ^ 0x5A for byte in body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault and fault.cut >= 0:
                self.wfile.write(body[: fault.cut])
                self.wfile.flush()
                self.close_connection = True
                if fault.reset:
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.connection.close()
                return
            self.wfile.write(body)

        # -- rights --------------------------------------------------------------------------
        def user(self) -> dict | None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token and token not in hub.users:
                raise Refused(401, message="Invalid credentials in Authorization header")
            return hub.users.get(token)

        def repo(self, kind: str, repo_id: str, files: bool = False, write: bool = False) -> Repo:
            user, repo = self.user(), hub.repos.get((kind, repo_id))
            spaces = {user["name"], *user["orgs"]} if user else set()
            owner = repo_id.split("/")[0] in spaces
            reader = owner or (user and repo and user["name"] in repo.readers)
            if repo is None or (repo.private and not reader):
                raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
            if files and repo.gated and not reader:
                raise Refused(
                    403 if user else 401, "GatedRepo", f"Access to model {repo_id} is restricted"
                )
            if write and not (owner and user["role"] == "write"):
                raise Refused(403, message="You don't have the rights to write to this repository")
            return repo

        def commit_of(self, repo: Repo, revision: str) -> str:
            oid = repo.branches.get(revision, revision)
            if oid not in repo.commits:
                raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return oid

        # -- routes --------------------------------------------------------------------------
        def dispatch(self) -> tuple[int, bytes, dict[str, str]]:
            for pattern, method in ROUTES:
                if match := re.fullmatch(pattern, f"{self.command} {self.route}"):
                    return getattr(self, method)(**match.groupdict())
            raise Refused(404, message=f"the stand-in has no {self.command} {self.route}")

        def json(self, value: object, status: int = 200, **headers: str) -> tuple:
            body = json.dumps(value).encode()
            return status, body, {"Content-Type": "application/json", **headers}

        def whoami(self) -> tuple:
            user = self.user()
            if user is None:
                raise Refused(401, message="Invalid username or password.")
            orgs = [{"type": "org", "name": o, "roleInOrg": "write"} for o in user["orgs"]]
            token = {"accessToken": {"displayName": "t", "role": user["role"]}}
            return self.json({"type": "user", "name": user["name"], "orgs": orgs, "auth": token})

        def info(self, kind: str, id: str, rev: str | None = None) -> tuple:
            repo = self.repo(kind, id)
            oid = self.commit_of(repo, rev or "main")
            files = [{"rfilename": path} for path in sorted(repo.commits[oid][2])]
            tags = [f"license:{repo.card['license']}"] if "license" in repo.card else []
            gated = "manual" if repo.gated else False
            return self.json(
                {"_id": "0", "id": id, "sha": oid, "private": repo.private, "gated": gated}
                | {"siblings": files, "tags": tags, "cardData": repo.card, "disabled": False}
            )

        def tree(self, kind: str, id: str, rev: str) -> tuple:
            repo = self.repo(kind, id)
            oid = self.commit_of(repo, rev)
            rows = [entry(p, c) for p, c in sorted(repo.commits[oid][2].items())]
            start = int(self.query.get("cursor", ["0"])[0])
            headers = {}
            if start + hub.page < len(rows):
                query = f"recursive=True&expand=False&cursor={start + hub.page}"
                headers["Link"] = f'<{hub.url}{self.raw_route}?{query}>; rel="next"'
            return self.json(rows[start : start + hub.page], **headers)

        def refs(self, kind: str, id: str) -> tuple:
            repo = self.repo(kind, id)
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
                for name, oid in sorted(repo.branches.items())
            ]
            return self.json({"branches": branches, "tags": [], "converts": []})

        def commits(self, kind: str, id: str, rev: str) -> tuple:
            repo = self.repo(kind, id)
            rows = [
                {"id": oid, "title": repo.commits[oid][1], "message": "", "date": DATE}
                | {"authors": [{"user": "someone"}]}
                for oid in repo.history(self.commit_of(repo, rev))
            ]
            return self.json(rows)

        def auth_check(self, kind: str, id: str, write: str | None) -> tuple:
            self.repo(kind, id, files=True, write=bool(write))
            return self.json({})

        def create_repo(self) -> tuple:
            wanted, user = json.loads(self.body), self.user()
            if user is None:
                raise Refused(401, message="Invalid username or password.")
            space = wanted.get("organization") or user["name"]
            repo_id, kind = f"{space}/{wanted['name']}", wanted.get("type") or "model"
            if (kind, repo_id) in hub.repos:
                raise Refused(409, message="You already created this model repo")
            if space not in {user["name"], *user["orgs"]} or user["role"] != "write":
                raise Refused(403, message=f"You don't have the rights to create under {space}")
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            hub.add_repo(repo_id, {}, kind, private=private)
            return self.json({"url": f"{hub.url}/{repo_id}", "id": "0", "name": repo_id})

        def branch(self, kind: str, id: str, rev: str) -> tuple:
            repo = self.repo(kind, id, write=True)
            if rev in repo.branches:
                raise Refused(409, message="Reference already exists")
            start = json.loads(self.body or b"{}").get("startingPoint", "main")
            repo.branches[rev] = self.commit_of(repo, start)
            return self.json({})

        def validate_yaml(self) -> tuple:
            content = json.loads(self.body)["content"]
            good = re.match(r"---\n.*?\n---\n", content, re.S)
            errors = [] if good else [{"message": "Missing metadata"}]
            return self.json({"errors": errors, "warnings": []}, 200 if good else 400)

        def preupload(self, kind: str, id: str, rev: str) -> tuple:
            repo = self.repo(kind, id, write=True)
            present = repo.commits[self.commit_of(repo, rev)][2]
            rows = []
            for file in json.loads(self.body)["files"]:
                path, size = file["path"], file["size"]
                lfs, old = is_lfs(path, size), present.get(path)
                oid = None if old is None else entry(path, old)
                oid = oid and (oid["lfs"]["oid"] if "lfs" in oid else oid["oid"])
                mode = "lfs" if lfs else "regular"
                rows.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            return self.json({"files": rows})

        def lfs_batch(self, id: str) -> tuple:
            self.repo("model", id, write=True)
            objects = []
            for wanted in json.loads(self.body)["objects"]:
                oid, size = wanted["oid"], wanted["size"]
                item = {"oid": oid, "size": size}
                if oid not in hub.objects:
                    href, header = f"{hub.cdn}/lfs/{oid}", {}
                    if size > hub.multipart_over:
                        count = -(-size // hub.multipart_over)
                        header = {str(i): f"{hub.cdn}/lfs/{oid}/{i}" for i in range(1, count + 1)}
                        header["chunk_size"] = str(hub.multipart_over)
                        href = f"{hub.url}/lfs-complete/{oid}"
                    verify = {"href": f"{hub.url}/lfs-verify", "header": {}}
                    item["actions"] = {"upload": {"href": href, "header": header}, "verify": verify}
                objects.append(item)
            return self.json({"transfer": "basic", "objects": objects})

        def lfs_put(self, oid: str) -> tuple:
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise Refused(400, message="the content's sha256 is not its oid")
            hub.objects[oid] = self.body
            return 200, b"", {}

        def lfs_part(self, oid: str, part: str) -> tuple:
            hub.parts[oid, int(part)] = self.body
            return 200, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'}

        def lfs_complete(self, oid: str) -> tuple:
            numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
            self.body = b"".join(hub.parts[oid, number] for number in numbers)
            return self.lfs_put(oid)

        def lfs_verify(self) -> tuple:
            wanted = json.loads(self.body)
            if len(hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
                raise Refused(404, message="no such object")
            return 200, b"", {}

        def commit(self, kind: str, id: str, rev: str) -> tuple:
            repo = self.repo(kind, id, write=True)
            if rev not in repo.branches:
                raise Refused(404, "RevisionNotFound", f"Invalid rev id: {rev}")
            files, title = dict(repo.files(rev)), ""
            for line in self.body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "header":
                    title = value["summary"]
                elif item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    if value["oid"] not in hub.objects:
                        raise Refused(400, message=f"LFS pointer of {value['path']} has no object")
                    files[value["path"]] = hub.objects[value["oid"]]
                else:
                    files.pop(value["path"])
            oid = repo.commit(rev, files, title)
            url = f"{hub.url}/{id}/commit/{oid}"
            return self.json({"success": True, "commitOid": oid, "commitUrl": url})

        def resolve(self, kind: str | None, id: str, rev: str, path: str) -> tuple:
            kind = "dataset" if kind else "model"
            repo = self.repo(kind, id, files=True)
            oid = self.commit_of(repo, rev)
            headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
            content = repo.commits[oid][2].get(path)
            if content is None:
                raise Refused(404, "EntryNotFound", "Entry not found")
            row = entry(path, content)
            if "lfs" in row:
                sha = hub.store(content)
                headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(content))}
                return 302, b"", headers | {"Location": f"{hub.cdn}/cdn/{sha}?signature=x"}
            headers |= {"ETag": f'"{row["oid"]}"'}
            if not self.route.startswith("/api/resolve-cache/"):
                target = quote(f"/api/resolve-cache/{kind}s/{id}/{oid}/{path}")
                return 307, b"", headers | {"Location": target}
            return self.ranged(content, headers)

        def cdn(self, oid: str) -> tuple:
            if "Authorization" in self.headers:
                raise Refused(400, message="the token was sent to another host")
            return self.ranged(hub.objects[oid], {"ETag": f'"{oid}"'})

        def url_file(self, path: str) -> tuple:
            if path not in hub.plain:
                raise Refused(404)
            return self.ranged(hub.plain[path], {})

        def ranged(self, content: bytes, headers: dict[str, str]) -> tuple:
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not asked:
                return 200, content, headers
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            if first >= len(content):
                return 416, b"", {"Content-Range": f"bytes */{len(content)}"}
            span = f"bytes {first}-{last}/{len(content)}"
            return 206, content[first : last + 1], headers | {"Content-Range": span}

    return Handler


def entry(path: str, content: bytes) -> dict:
    """A file's row in a tree answer; for LFS files `oid` is the pointer's, `lfs.oid` the sha256."""
    if not is_lfs(path, len(content)):
        return {"type": "file", "path": path, "size": len(content), "oid": git_blob(content)}
    sha = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {len(content)}\n"
    lfs = {"oid": sha, "size": len(content), "pointerSize": len(pointer)}
    row = {"type": "file", "path": path, "size": len(content), "oid": git_blob(pointer.encode())}
    return row | {"lfs": lfs}


API = r"/api/(?P<kind>model|dataset)s/(?P<id>[^/]+/[^/]+)"
ROUTES = (
    (r"GET /api/whoami-v2", "whoami"),
    (rf"GET {API}", "info"),
    (rf"GET {API}/revision/(?P<rev>.+)", "info"),
    (rf"GET {API}/tree/(?P<rev>[^/]+)", "tree"),
    (rf"GET {API}/refs", "refs"),
    (rf"GET {API}/commits/(?P<rev>[^/]+)", "commits"),
    (rf"GET {API}/auth-check(?P<write>/write)?", "auth_check"),
    (r"POST /api/repos/create", "create_repo"),
    (rf"POST {API}/branch/(?P<rev>.+)", "branch"),
    (r"POST /api/validate-yaml", "validate_yaml"),
    (rf"POST {API}/preupload/(?P<rev>.+)", "preupload"),
    (rf"POST {API}/commit/(?P<rev>.+)", "commit"),
    (r"POST /(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /lfs/(?P<oid>\w+)", "lfs_put"),
    (r"PUT /lfs/(?P<oid>\w+)/(?P<part>\d+)", "lfs_part"),
    (r"POST /lfs-complete/(?P<oid>\w+)", "lfs_complete"),
    (r"POST /lfs-verify", "lfs_verify"),
    (r"GET /cdn/(?P<oid>\w+)", "cdn"),
    (r"GET /plain/(?P<path>.+)", "url_file"),
    (
        r"(GET|HEAD) /api/resolve-cache/(model|(?P<kind>dataset))s/(?P<id>[^/]+/[^/]+)"
        r"/(?P<rev>[^/]+)/(?P<path>.+)",
        "resolve",
    ),
    (
        r"(GET|HEAD) /((?P<kind>dataset)s/)?(?P<id>[^/]+/[^/]+)"
        r"/resolve/(?P<rev>[^/]+)/(?P<path>.+)",
        "resolve",
    ),
)
