"""An API server in a thread: keeps what is created, knows labels, uids and preconditions, and can fall silent.

No controller works behind it: what a job becomes, a test says.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Object = dict[str, Any]
_PATH = re.compile(r"/apis?/(?:[^/]+/)?v1/namespaces/(?P<namespace>[^/]+)/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?")
_PART = re.compile(r"(?P<key>[^=,\s]+)\s*(?:=\s*(?P<one>[^,\s]+)|in \((?P<some>[^)]*)\))")


class StandInApi:
    """One cluster."""

    def __init__(self, cluster: str = "") -> None:
        """Start it.

        Args:
            cluster: uid of its namespace kube-system; empty: nobody may read it.
        """
        self.cluster = cluster
        self.objects: dict[tuple[str, str], Object] = {}
        """What there is, by kind (plural) and name."""
        self.asked: list[tuple[str, str]] = []
        self.lose_answer_to = ""
        """Plural: the answer to its next creation is lost, and every later call is not answered either."""
        self.silent = False
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                code, value = api.answer(self.command, self.path, json.loads(body or b"null"))
                if api.silent:
                    self.close_connection = True
                    return
                data = json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                pass

            do_GET = do_POST = do_DELETE = _answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, path: Path, namespace: str = "team", address: str = "") -> str:
        """Write a kubeconfig whose context has the name that many have; return its path."""
        context = {"cluster": "default", "user": "default", "namespace": namespace}
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "default",
            "clusters": [{"name": "default", "cluster": {"server": address or self.address}}],
            "users": [{"name": "default", "user": {"token": "x"}}],
            "contexts": [{"name": "default", "context": context}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(config))
        return str(path)

    def uid(self, plural: str, name: str) -> str:
        """What tells an object from the next one of that name; empty: there is none."""
        found = self.objects.get((plural, name))
        return str(found["metadata"]["uid"]) if found else ""

    def answer(self, method: str, target: str, body: Any) -> tuple[int, Object]:
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if self.silent:
            return 500, {}
        if url.path == "/api/v1/namespaces/kube-system":
            if self.cluster:
                return 200, {"metadata": {"name": "kube-system", "uid": self.cluster}}
            words = 'namespaces "kube-system" is forbidden: User "me" cannot get resource "namespaces" in API group ""'
            return 403, _status(403, "Forbidden", words, "kube-system")
        match = _PATH.fullmatch(url.path)
        assert match, target
        plural, name = match["plural"], match["name"]
        self.asked.append((method, f"{plural}/{name or ''}"))
        if method == "POST":
            return self._create(plural, body, match["namespace"], query)
        if name is None:
            wanted = [obj for (kind, _), obj in list(self.objects.items()) if kind == plural]
            return 200, {"items": [obj for obj in wanted if _selected(obj, query.get("labelSelector", ""))]}
        found = self.objects.get((plural, name))
        if found is None:
            return 404, _status(404, "NotFound", f'{plural} "{name}" not found', name)
        if method == "GET":
            return 200, found
        uid = ((body or {}).get("preconditions") or {}).get("uid")
        if uid and uid != found["metadata"]["uid"]:
            own = found["metadata"]["uid"]
            words = f"the UID in the precondition ({uid}) does not match the UID in record ({own})"
            return 409, _status(409, "Conflict", words, name)
        del self.objects[plural, name]
        return 200, {"kind": "Status", "status": "Success"}

    def _create(self, plural: str, obj: Object, namespace: str, query: dict[str, str]) -> tuple[int, Object]:
        name = str(obj["metadata"]["name"])
        if (plural, name) in self.objects:
            return 409, _status(409, "AlreadyExists", f'{plural} "{name}" already exists', name)
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        made = {"uid": str(uuid.uuid4()), "creationTimestamp": since, "namespace": namespace}
        obj["metadata"].update(made, managedFields=[{"manager": query.get("fieldManager")}])
        if "dryRun" not in query:
            self.objects[plural, name] = obj
            self.silent = self.lose_answer_to == plural
        return 201, obj


def _status(code: int, reason: str, message: str, name: str) -> Object:
    return {"kind": "Status", "code": code, "reason": reason, "message": message, "details": {"name": name}}


def _selected(obj: Object, selector: str) -> bool:
    labels = obj["metadata"].get("labels") or {}
    for part in _PART.finditer(selector):
        allowed = [part["one"]] if part["one"] else part["some"].split(",")
        if labels.get(part["key"]) not in allowed:
            return False
    return True
