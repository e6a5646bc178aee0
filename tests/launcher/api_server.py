"""A small API server in memory: stores what it is sent, lists it by labels, and refuses what a test forbids.

It stands for a cluster where a test is about what the launcher asks and says; what daemons do is tested on real ones.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Object = dict[str, Any]
USER = "alice"
KINDS = {"configmaps": "ConfigMap", "jobs": "Job", "pytorchjobs": "PyTorchJob", "pods": "Pod", "events": "Event"}


class ApiServer:
    """What the cluster holds, by resource and name, and what it was asked."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Object]] = {resource: {} for resource in KINDS}
        self.forbidden: set[tuple[str, str]] = set()
        """Pairs of verb and resource."""
        self.asked: list[tuple[str, str, Object]] = []
        """Method, path and body of every call."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def put(self, resource: str, *objects: Object) -> None:
        """Have objects be there."""
        for obj in objects:
            self.objects[resource][obj["metadata"]["name"]] = obj

    def kubeconfig(self, path: Path) -> str:
        """Write a kubeconfig that leads here; return its path."""
        host, port = self._server.server_address[:2]
        cluster = {"name": "c", "cluster": {"server": f"http://{host}:{port}"}}
        user = {"name": "u", "user": {"token": "t"}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "vlm"}}
        config = {"clusters": [cluster], "users": [user], "contexts": [context], "current-context": "x"}
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **config}))
        return str(path)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, url: str, body: Object) -> tuple[int, Object]:
        """Do what a call asks for; return the status and the answer's body."""
        parts, query = urlsplit(url), {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        self.asked.append((method, url, body))
        resource, _, rest = parts.path.partition("/namespaces/")[2].partition("/")[2].partition("/")
        name, _, part = rest.partition("/")
        if resource not in KINDS:
            return 404, {"kind": "Status", "details": {"name": name}, "message": "not found"}
        verb = {"POST": "create", "DELETE": "delete"}.get(method, "get" if name else "list")
        if (verb, resource) in self.forbidden:
            text = f'{resource} is forbidden: User "{USER}" cannot {verb} resource "{resource}" in API group ""'
            return 403, {"kind": "Status", "reason": "Forbidden", "message": f'{text} in the namespace "vlm"'}
        held = self.objects[resource]
        if method == "POST":
            if not query.get("dryRun"):
                held[body["metadata"]["name"]] = {**body, "metadata": {"uid": "1", **body["metadata"]}}
            return 201, body
        if not name:
            return 200, {"items": [obj for obj in held.values() if _selected(obj, query.get("labelSelector", ""))]}
        if name not in held or part:
            return 404, {"kind": "Status", "details": {"name": name, "kind": resource}, "message": "not found"}
        if method == "DELETE":
            self.deleted(resource, name, body)
        return 200, held.get(name, {})

    def deleted(self, resource: str, name: str, body: Object) -> None:
        """What becomes of an object that is deleted; its pods go with it."""
        del self.objects[resource][name]
        if resource in ("jobs", "pytorchjobs"):
            self.objects["pods"].clear()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def _call(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                status, answer = api.answer(self.command, self.path, json.loads(self.rfile.read(size) or b"{}"))
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = _call

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _selected(obj: Object, selector: str) -> bool:
    """Whether an object has the labels: ``a=b,c in (d,e)``."""
    labels = obj["metadata"].get("labels") or {}
    for term in selector.replace(", ", ",").split(",") if "(" not in selector else [selector]:
        name, _, value = term.partition(" in (") if " in (" in term else term.partition("=")
        if name and labels.get(name) not in value.rstrip(")").split(","):
            return False
    return True


@contextmanager
def serving() -> Iterator[ApiServer]:
    """A server as long as a test needs it."""
    server = ApiServer()
    try:
        yield server
    finally:
        server.close()
