"""The launcher's own client against a real API server: what it says when things go wrong, and that it creates once."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from launcher.backends.kubernetes import connection
from launcher.backends.kubernetes.client import KINDS, Client
from launcher.backends.kubernetes.refusals import AlreadyThere
from launcher.errors import BackendError, NotAnswering
from tests.kubernetes.bed import Bed, Cluster
from tests.kubernetes.image import pod_template
from tests.slurm.bed import until

Write = Callable[..., Path]
POD_LIMIT_S = 60.0
BROKEN = {
    "apiVersion": "kubeflow.org/v1",
    "kind": "PyTorchJob",
    "metadata": {"name": "broken"},
    "spec": {"pytorchReplicaSpecs": {"Master": {"template": {"spec": {"containers": [{"name": "x", "image": "y"}]}}}}},
}


def note(name: str = "note", run: str = "finetune", **data: str) -> dict[str, Any]:
    """A ConfigMap such as a run has."""
    meta = {"name": name, "labels": {"llavajob/run": run}, "annotations": {"llavajob/folder": f"/runs/{run}"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


@pytest.fixture
def client(namespace: str) -> Client:
    return Client({"namespace": namespace})


@pytest.fixture
def kubeconfig(cluster: Cluster, own_place: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Change the cluster's kubeconfig and use the change."""

    def write(server: str = "", context: dict[str, str] | None = None, user: dict[str, Any] | None = None) -> Path:
        given = yaml.safe_load(Path(cluster.environment["KUBECONFIG"]).read_text())
        if server:
            given["clusters"][0]["cluster"]["server"] = server
        given["contexts"][0]["context"].update(context or {})
        if user is not None:
            given["users"][0]["user"] = user
        path = own_place / "kubeconfig"
        path.write_text(yaml.safe_dump(given))
        monkeypatch.setenv("KUBECONFIG", str(path))
        return path

    return write


def told(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, str]:
    """Message and hint of the error that a call ends with."""
    with pytest.raises(BackendError) as caught:
        call(*arguments, **options)
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value.message, caught.value.hint


# Objects


def test_the_package_is_imported_with_the_first_call_only() -> None:
    code = "import sys, launcher.cli, launcher.backends.kubernetes.client; print('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_objects_are_made_found_and_deleted(client: Client) -> None:
    assert client.get("ConfigMap", "note") is None
    made = client.create(note(plan="x"))
    assert client.get("ConfigMap", "note") == made and made["data"] == {"plan": "x"}
    client.create(note("other", run="pretrain"))
    assert [obj["metadata"]["name"] for obj in client.list("ConfigMap", "llavajob/run=finetune")] == ["note"]
    (found,) = client.list("ConfigMap", fields="metadata.name=other")
    assert (found["kind"], found["apiVersion"]) == ("ConfigMap", "v1")
    assert "note" in [obj["metadata"]["name"] for obj in client.list("ConfigMap", namespace="*")]
    assert client.delete_all("ConfigMap", "llavajob/run", foreground=False) == ["note", "other"]
    assert client.delete("ConfigMap", "note") is False


@pytest.mark.parametrize("foreground", [True, False])
def test_an_object_is_deleted_only_if_it_is_the_one_that_was_meant(client: Client, foreground: bool) -> None:
    old = client.create(note())["metadata"]["uid"]
    assert client.delete("ConfigMap", "note", foreground=False)
    new = client.create(note())["metadata"]["uid"]
    assert client.delete("ConfigMap", "note", foreground, uid=old) is False
    assert (client.get("ConfigMap", "note") or {})["metadata"]["uid"] == new
    assert client.delete("ConfigMap", "note", foreground, uid=new) is True


def test_a_dry_run_leaves_nothing(client: Client) -> None:
    assert client.create(note(), dry_run=True)["metadata"]["uid"]
    assert client.list("ConfigMap", "llavajob/run") == []


def test_the_server_and_its_version(client: Client, cluster: Cluster) -> None:
    version = json.loads(cluster.kubectl("version", "--output=json"))["serverVersion"]["gitVersion"]
    assert client.version() == version
    config = yaml.safe_load(Path(cluster.environment["KUBECONFIG"]).read_text())
    assert client.server() == config["clusters"][0]["cluster"]["server"]
    assert client.serves("kubeflow.org") and not client.serves("trainer.kubeflow.org")


def test_an_address_is_said_without_secrets(kubeconfig: Write) -> None:
    kubeconfig(server="https://me:secret@127.0.0.1:1/cluster/a?b=c")
    assert Client({}).server() == "https://127.0.0.1:1/cluster/a"


def test_what_a_pod_printed(client: Client, cluster: Cluster, namespace: str) -> None:
    pod = pod_template(("sh", "-c", "echo one; echo two; sleep 1; echo three"), name="main")
    pod["spec"]["restartPolicy"] = "Never"
    assert client.pod_log("talk", "main") is None
    client.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "talk"}, **pod})
    # Before it has a node, before its container has started, and as it grows, reading is no error.
    lengths = set[int]()

    def ended() -> bool:
        lengths.add(len(client.pod_log("talk", "main") or b""))
        return (client.get("Pod", "talk") or {})["status"]["phase"] == "Succeeded"

    until(ended, POD_LIMIT_S, lambda: cluster.kubectl("get", "events", f"--namespace={namespace}"))
    assert client.pod_log("talk", "main") == b"one\ntwo\nthree\n" and 0 in lengths
    stamped = (client.pod_log("talk", "main", timestamps=True) or b"").decode().splitlines()
    assert [line.split(" ", 1)[1] for line in stamped] == ["one", "two", "three"]
    assert client.pod_log("talk", "main", since_time=stamped[2].split()[0]) == b"three\n"
    assert client.pod_log("talk", "main", previous=True) == b""
    assert "container other is not valid for pod talk" in told(client.pod_log, "talk", "other")[0]
    client.delete("Pod", "talk", foreground=False, grace_s=0)
    assert client.pod_log("talk", "main") is None


def test_rights_of_ours_and_of_an_account(client: Client, cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("create", "role", "look", "--verb=get", "--resource=pods/log", f"--namespace={namespace}")
    bind = ("create", "rolebinding", "look", "--role=look", f"--serviceaccount={namespace}:default")
    cluster.kubectl(*bind, f"--namespace={namespace}")
    assert client.may("create", "pytorchjobs", "kubeflow.org")
    assert client.may("get", "pods", subresource="log", account="default")
    assert not client.may("get", "pods", account="default")
    assert not client.may("create", "pytorchjobs", "kubeflow.org", account="default")


def test_a_groups_rights_are_its_accounts_rights(client: Client, cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("create", "role", "look", "--verb=list", "--resource=jobs", f"--namespace={namespace}")
    bind = ("create", "rolebinding", "look", "--role=look", f"--group=system:serviceaccounts:{namespace}")
    cluster.kubectl(*bind, f"--namespace={namespace}")
    assert client.may("list", "jobs", "batch", account="anyone")


# Which cluster


def test_the_namespace_is_the_profiles_then_the_contexts(kubeconfig: Write) -> None:
    assert Client({}).namespace == "default"
    kubeconfig(context={"namespace": "team"})
    assert Client({"context": ""}).namespace == "team"
    assert Client({"namespace": "mine"}).namespace == "mine"


def test_no_kubeconfig(monkeypatch: pytest.MonkeyPatch, own_place: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(own_place / "nothing"))
    message, hint = told(Client({}).version)
    assert f"no Kubernetes cluster is known here: KUBECONFIG names {own_place}/nothing" in message and "--on" in hint
    monkeypatch.delenv("KUBECONFIG")
    assert "there is no kubeconfig (~/.kube/config)" in told(Client({}).version)[0]


def test_a_context_that_is_not_there(kubeconfig: Write) -> None:
    (name,) = (entry["name"] for entry in yaml.safe_load(kubeconfig().read_text())["contexts"])
    message, hint = told(Client({"context": f"{name}s"}).version)
    assert message == f"the kubeconfig has no context '{name}s'; did you mean '{name}'?"
    assert f"Contexts there: {name}." in hint


def test_no_current_context(kubeconfig: Write) -> None:
    path = kubeconfig()
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "current-context": ""}))
    message, hint = told(Client({}).version)
    assert message == "the kubeconfig has no current context" and content["contexts"][0]["name"] in hint
    path.write_text(yaml.safe_dump({**content, "current-context": "gone"}))
    assert "no context 'gone', although it is the current one" in told(Client({}).version)[0]
    assert Client({"context": content["contexts"][0]["name"]}).version()


def test_a_context_without_its_user(kubeconfig: Write) -> None:
    kubeconfig(context={"cluster": "gone"})
    message, hint = told(Client({}).version)
    assert "gives no access" in message and "gone" in message and "kubectl" in hint


@pytest.mark.parametrize("text", ["a: [", "just text", "contexts: [{context: {}}]", "\x00"])
def test_a_kubeconfig_that_is_none(own_place: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (own_place / "config").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(own_place / "config"))
    assert told(Client({}).version)[0] == f"{own_place}/config is no kubeconfig: see `kubectl config view`"


def test_several_kubeconfigs_are_one(kubeconfig: Write, own_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kubeconfig(context={"namespace": "team"})
    (own_place / "other").write_text("contexts: [{name: other, context: {cluster: c, user: u}}]")
    monkeypatch.setenv("KUBECONFIG", f"{own_place}/other:{own_place}/none:{path}")
    assert Client({}).namespace == "team" and Client({}).version()


def test_inside_a_pod_the_account_is_used(client: Client, cluster: Cluster, namespace: str) -> None:
    code = (
        "from launcher.backends.kubernetes.client import Client\n"
        "client = Client({'context': 'of the submitter'})\n"
        "print(client.namespace, client.context == '', client.version(), client.may('list', 'pods'))\n"
        "try:\n    client.list('Pod')\nexcept Exception as error:\n    print(error)\n"
    )
    pod = pod_template((sys.executable, "-c", code), name="main", env=[{"name": "PYTHONPATH", "value": _repository()}])
    pod["spec"]["restartPolicy"] = "Never"
    client.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "inside"}, **pod})

    def ended() -> bool:
        return (client.get("Pod", "inside") or {})["status"]["phase"] in ("Succeeded", "Failed")

    until(ended, POD_LIMIT_S, lambda: cluster.kubectl("get", "events", f"--namespace={namespace}"))
    who = f"system:serviceaccount:{namespace}:default"
    assert (client.pod_log("inside", "main") or b"").decode().splitlines() == [
        f"{namespace} True {client.version()} False",
        f"{who} has no right to list pods in namespace '{namespace}'",
    ]


def _repository() -> str:
    return str(Path(__file__).parents[2])


# Refusals


def test_a_namespace_that_is_not_there(use_cluster: None) -> None:
    message, hint = told(Client({"namespace": "nowhere"}).create, note())
    assert message == "there is no namespace 'nowhere' in the cluster" and "kubectl create namespace nowhere" in hint


def test_a_kind_that_is_not_there(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "LocalQueue", ("kueue.x-k8s.io/v1beta1", "localqueues", True))
    assert told(client.list, "LocalQueue")[0] == "the cluster has no LocalQueue (kueue.x-k8s.io/v1beta1)"
    assert told(client.get, "LocalQueue", "main")[0] == "the cluster has no LocalQueue (kueue.x-k8s.io/v1beta1)"


@pytest.mark.parametrize("v2", [False, True])
def test_no_training_operator(client: Client, monkeypatch: pytest.MonkeyPatch, v2: bool) -> None:
    # A version that the server does not have stands for a server without the operator.
    monkeypatch.setitem(KINDS, "PyTorchJob", ("kubeflow.org/v7", "pytorchjobs", True))
    monkeypatch.setattr(Client, "serves", lambda self, group: v2)
    for call in (
        lambda: client.create({**BROKEN}),
        lambda: client.list("PyTorchJob"),
        lambda: client.get("PyTorchJob", "a"),
    ):
        message, hint = told(call)
        assert message == "the cluster has no PyTorchJob (kubeflow.org/v7): no training operator is installed"
        assert ("Trainer v2's TrainJob" in hint) is v2 and "kubectl get crd" in hint


def test_the_servers_own_words(client: Client) -> None:
    message, _ = told(client.create, BROKEN)
    assert message.startswith("Kubernetes refused to create PyTorchJob 'broken': ") and "webhook" not in message
    assert "spec.containers: Required value: must have at least one container with name pytorch" in message
    message, _ = told(client.create, note("No_Name"))
    assert message.startswith("Kubernetes refused to create ConfigMap 'No_Name': ConfigMap \"No_Name\" is invalid")


def token_of(cluster: Cluster, namespace: str) -> str:
    return cluster.kubectl("create", "token", "default", f"--namespace={namespace}").strip()


def test_a_right_that_is_missing(cluster: Cluster, namespace: str, kubeconfig: Write) -> None:
    kubeconfig(user={"token": token_of(cluster, namespace)})
    client = Client({"namespace": namespace})
    who = f"system:serviceaccount:{namespace}:default"
    message, hint = told(client.create, BROKEN)
    assert message == f"{who} has no right to create pytorchjobs.kubeflow.org in namespace '{namespace}'"
    assert "manifests/service-account.yaml" in hint
    assert told(client.list, "Node")[0] == f"{who} has no right to list nodes in the cluster"
    assert told(client.pod_log, "a", "b")[0] == f"{who} has no right to get pods/log in namespace '{namespace}'"


@pytest.mark.parametrize("user", [{"token": "expired"}, {}])
def test_credentials_that_do_not_count(kubeconfig: Write, user: dict[str, str]) -> None:
    kubeconfig(user=user)
    message, hint = told(Client({}).list, "Pod")
    assert "credentials" in message and "Log in again" in hint
    assert "expired" not in message


def plugin(*lines: str) -> dict[str, Any]:
    """A user whose credentials a shell script gives."""
    version = "client.authentication.k8s.io/v1"
    run = {"apiVersion": version, "command": "sh", "args": ["-c", "\n".join(lines)], "interactiveMode": "Never"}
    return {"exec": run}


@pytest.mark.parametrize(
    ("user", "words"),
    [
        (plugin("echo 'session expired, run cloud login' >&2", "exit 1"), "session expired, run cloud login"),
        ({"exec": {**plugin()["exec"], "command": "no-such-plugin"}}, "no-such-plugin"),
        (plugin("echo '{}'"), "exec"),
    ],
)
def test_a_plugin_that_gives_no_credentials(
    kubeconfig: Write, capfd: pytest.CaptureFixture[str], user: dict[str, Any], words: str
) -> None:
    kubeconfig(user=user)
    message, hint = told(Client({}).list, "Pod")
    assert words in message and "Log in again" in hint
    assert capfd.readouterr() == ("", "")


def test_a_token_that_ends_is_fetched_anew(
    cluster: Cluster, namespace: str, kubeconfig: Write, own_place: Path
) -> None:
    """The plugin's first token is refused although it has not said when it ends."""
    file = own_place / "token"
    file.write_text("old")
    version = "client.authentication.k8s.io/v1"
    status = f'{{"apiVersion":"{version}","kind":"ExecCredential","status":{{"token":"\'$(cat {file})\'"}}}}'
    kubeconfig(user=plugin(f"echo '{status}'"))
    client = Client({"namespace": namespace})
    assert "does not accept the credentials" in told(client.may, "list", "pods")[0]
    file.write_text(token_of(cluster, namespace))
    assert client.may("list", "pods") is False
    file.write_text("old")
    assert client.may("list", "pods") is False


def test_a_server_of_another_authority(kubeconfig: Write, own_place: Path) -> None:
    path = kubeconfig()
    content = yaml.safe_load(path.read_text())
    command = (
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ed25519",
        "-nodes",
        "-subj",
        "/CN=other",
        "-keyout",
        "key",
        "-out",
        "ca",
    )
    subprocess.run(command, cwd=own_place, check=True, capture_output=True)
    content["clusters"][0]["cluster"].pop("certificate-authority-data", None)
    content["clusters"][0]["cluster"]["certificate-authority"] = str(own_place / "ca")
    path.write_text(yaml.safe_dump(content))
    message, hint = told(Client({}).version)
    assert "cannot be trusted: " in message and "certificate-authority" in hint


# Silence


@pytest.fixture
def stand_in() -> Iterator[Callable[..., str]]:
    """A server that says the same to everyone; gives its address."""
    servers = []

    def start(status: int, body: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                self.send_header("Location", "https://login.example")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_: object) -> None: ...

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def status(code: int, message: str, reason: str = "") -> str:
    return json.dumps({"kind": "Status", "code": code, "message": message, "reason": reason})


@pytest.mark.parametrize(
    ("code", "body", "silent", "words"),
    [
        (429, status(429, "too many requests, please try again later"), True, "too many requests"),
        (500, status(500, "etcdserver: leader changed"), True, "etcdserver: leader changed"),
        (500, status(500, 'failed calling webhook "v.pytorchjob"'), True, "an admission webhook of the cluster"),
        (502, "<html>Bad gateway</html>", True, "Bad gateway"),
        (503, "", True, "HTTP status 503"),
        (504, status(504, "Timeout: request did not complete"), True, "did not complete"),
        (409, status(409, "quota is being changed", "Conflict"), True, "quota is being changed"),
        (302, "<html>Log in</html>", False, "is no Kubernetes API server (status 302)"),
        (403, "<html>Forbidden</html>", False, "is no Kubernetes API server (status 403)"),
        (403, status(403, "exceeded quota: gpus", "Forbidden"), False, "refused to create ConfigMap 'note': exceeded"),
    ],
)
def test_silence_is_told_from_refusal(
    kubeconfig: Write, stand_in: Callable[..., str], code: int, body: str, silent: bool, words: str
) -> None:
    kubeconfig(server=stand_in(code, body))
    with pytest.raises(BackendError) as caught:
        Client({}).create(note())
    assert isinstance(caught.value, NotAnswering) is silent and words in caught.value.message


def test_nobody_listens(kubeconfig: Write) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        server = f"https://127.0.0.1:{taken.getsockname()[1]}"
        kubeconfig(server=server)
        with pytest.raises(NotAnswering) as caught:
            Client({}).version()
    assert caught.value.message == f"Kubernetes does not answer ({server}: connection refused)"


def test_a_name_that_nobody_knows(kubeconfig: Write) -> None:
    kubeconfig(server="https://cluster.invalid:6443")
    with pytest.raises(NotAnswering, match=r"does not answer .*(name or service not known|name resolution)"):
        Client({}).version()


def test_a_server_that_says_nothing(kubeconfig: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "READ_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        kubeconfig(server=f"http://127.0.0.1:{mute.getsockname()[1]}")
        with pytest.raises(NotAnswering, match="no answer within"):
            Client({}).version()


def test_a_server_that_is_down_for_a_while(own_bed: Bed, client: Client) -> None:
    """One that works goes silent, is asked again, and the same client goes on."""
    client.version()
    own_bed.stop_api()
    with pytest.raises(NotAnswering, match="connection refused"):
        client.version()
    said: list[str] = []
    starter = threading.Timer(1.0, own_bed.start_api)
    starter.start()
    client.create_once(note(), patience_s=60, say=said.append, pause_s=0.2)
    starter.join()
    assert said and all(line.endswith("; trying again ...") for line in said)
    assert len(client.list("ConfigMap", "llavajob/run=finetune")) == 1


# Once


class Line:
    """A line to the server on which answers get lost."""

    def __init__(self, server: str) -> None:
        self.there = (str(urlsplit(server).hostname), urlsplit(server).port or 443)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.cut = 0
        self.asked = 0
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.listener.getsockname()[1]}"

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self.listener.accept()
                there = socket.create_connection(self.there)
                threading.Thread(target=self._up, args=(here, there), daemon=True).start()
                threading.Thread(target=self._down, args=(there, here), daemon=True).start()

    def _up(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(65536):
                there.sendall(data)

    def _down(self, there: socket.socket, here: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := there.recv(65536):
                if self.cut:
                    self.cut -= 1
                    break
                here.sendall(data)
            here.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def line(kubeconfig: Write) -> Iterator[Line]:
    made = Line(yaml.safe_load(kubeconfig().read_text())["clusters"][0]["cluster"]["server"])
    kubeconfig(server=made.server)
    yield made
    made.listener.close()


def test_a_lost_answer_is_not_the_end(line: Line, namespace: str) -> None:
    client, said = Client({"namespace": namespace}), list[str]()
    client.version()
    line.cut = 1
    with pytest.raises(NotAnswering):
        client.create(note("plain"))
    assert client.get("ConfigMap", "plain"), "the server had made it"
    line.cut = 1
    made = client.create_once(note(), patience_s=30, say=said.append, pause_s=0.01)
    assert len(said) == 1 and "does not answer" in said[0]
    assert client.get("ConfigMap", "note") == made


def test_a_lost_answer_does_not_make_anothers_object_ours(
    line: Line, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run is submitted by two at once, and the one who lost hears nothing at first."""
    client = Client({"namespace": namespace})
    client.create(note())
    line.cut = 1
    message, hint = told(client.create_once, note(), 30, pause_s=0.01)
    assert f"ConfigMap 'note' is already in namespace '{namespace}' since " in message
    assert "(run finetune in /runs/finetune)" in message
    assert hint == "End it: llavajob cancel finetune; or take another name: --name"


def test_a_name_that_is_taken(client: Client, cluster: Cluster, namespace: str) -> None:
    cluster.create(namespace, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "note"}})
    with pytest.raises(AlreadyThere):
        client.create(note())
    message, hint = told(client.create_once, note(), 0)
    assert "(not made by llavajob)" in message and hint == "Take another name: --name"


def test_a_name_whose_owner_is_being_deleted(client: Client, cluster: Cluster, namespace: str) -> None:
    kept = note()
    kept["metadata"]["finalizers"] = ["llavajob/test"]
    client.create(kept)
    assert client.delete("ConfigMap", "note")
    message, hint = told(client.create_once, note(), 0)
    assert "it is being deleted" in message and "Wait until it is gone" in hint
    patch = ("patch", "configmap", "note", f"--namespace={namespace}", "--type=merge")
    cluster.kubectl(*patch, '--patch={"metadata":{"finalizers":null}}')


def test_patience_ends(kubeconfig: Write) -> None:
    kubeconfig(server="http://127.0.0.1:1")
    said, start = list[str](), time.monotonic()
    with pytest.raises(NotAnswering):
        Client({}).create_once(note(), patience_s=0.1, say=said.append, pause_s=0.02)
    assert said and time.monotonic() - start < 5
