"""Rights on a cluster: the shipped role has what the launcher uses, and runs can be ended without the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.backends.kubernetes import doctor, events
from launcher.backends.kubernetes.client import KINDS, Client
from launcher.backends.kubernetes.refusals import RIGHTS_HINT
from launcher.shipped import manifests_folder
from tests.launcher.api_server import ApiServer, serving
from tests.shell import Shell

Write = Callable[..., str]
NOTE = "Note: alice has no right to list events in namespace 'vlm', so why pods wait cannot be shown."


@pytest.fixture
def server(shell: Shell, own_place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """An API server, and a profile ``site`` whose pods see the recipe's folder."""
    volumes = [{"mount": "/runs", "pvc": "a"}, {"mount": str(shell.folder), "pvc": "b"}]
    site = {"backend": "kubernetes", "kubernetes": {"volumes": volumes}}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump({"profiles": {"site": site}}))
    with serving() as found:
        monkeypatch.setenv("KUBECONFIG", found.kubeconfig(own_place / "kubeconfig"))
        yield found


def pending_pod(run: str, server: ApiServer | None = None) -> dict[str, Any]:
    labels = {"llavajob/run": run, "llavajob/step": "train"}
    if server is not None:
        labels = {**server.objects["pytorchjobs"][run]["metadata"]["labels"]}
    return {"kind": "Pod", "metadata": {"name": f"{run}-master-0", "labels": labels}, "status": {"phase": "Pending"}}


def test_without_events_a_run_is_sent_shown_and_cancelled(shell: Shell, recipe: Write, server: ApiServer) -> None:
    server.forbidden = {("list", "events")}
    shell("submit", recipe(), "--on", "site", "--name", "night")
    server.put("pods", pending_pod("night", server))
    told = shell("status", "night")
    assert told.out.startswith("night  PENDING") and told.err.count(NOTE) == 1
    assert shell("list", "--json").json[0]["state"] == "PENDING"
    told = shell("cancel", "night")
    assert "CANCELLED" in told.out + told.err and told.err.count("no right to list events") <= 1
    assert server.objects["pytorchjobs"] == server.objects["configmaps"] == {}
    assert shell.status("night")["state"] == "CANCELLED"


def test_without_logs_and_events_a_run_that_runs_is_shown_and_cancelled(
    shell: Shell, recipe: Write, server: ApiServer
) -> None:
    shell("submit", recipe(), "--on", "site", "--name", "night")
    server.forbidden = {("list", "events"), ("get", "pods"), ("delete", "pods")}
    running = {"name": "pytorch", "containerID": "c://1", "state": {"running": {"startedAt": "2026-11-23T20:00:00Z"}}}
    pod = pending_pod("night", server)
    server.put("pods", {**pod, "status": {"phase": "Running", "containerStatuses": [running]}})
    assert shell("status", "night").out.startswith("night  PENDING")
    assert "no right to get pods" in shell("logs", "night", check=None).err
    shell("cancel", "night")
    assert shell.status("night")["state"] == "CANCELLED"


def test_the_missing_right_is_said_once_however_often_it_is_asked(
    server: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_told", set())
    server.forbidden = {("list", "events")}
    for _ in range(3):
        assert events.waiting_events(Client({}), [], [pending_pod("night")]) == []
    said = capsys.readouterr().err
    assert said.count(NOTE) == 1 and "manifests/submitter-role.yaml" in said


def test_events_are_asked_for_only_where_something_waits(server: ApiServer) -> None:
    running = {"metadata": {"name": "p"}, "status": {"phase": "Running"}}
    assert events.waiting_events(Client({}), [], [running]) == [] and server.asked == []
    assert events.waiting_events(Client({}), [], [pending_pod("night")]) == []
    assert [url.partition("?")[0] for _, url, _ in server.asked] == ["/api/v1/namespaces/vlm/events"]


def test_the_role_for_submitters_has_every_right_that_is_used() -> None:
    (role,) = yaml.safe_load_all((manifests_folder() / "submitter-role.yaml").read_text())
    granted = {
        (verb, resource, group)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    used = {
        (verb, f"{resource}/{part}" if part else resource, group)
        for verb, resource, group, part in (*doctor._RIGHTS, doctor._EVENTS)
    }
    assert used <= granted
    # Doctor's pod, which cancel deletes as well where it has not started, and what it looks for.
    assert {(verb, "pods", "") for verb in ("create", "get", "delete")} <= granted
    for kind in ("Namespace", "PersistentVolumeClaim", "ServiceAccount"):
        assert ("get", KINDS[kind][1], "") in granted
    # No values of secrets, and nothing beyond the names of what there is.
    assert not any(resource in ("*", "secrets") or verb == "*" for verb, resource, _ in granted)


def test_the_hint_names_the_role_that_is_there() -> None:
    assert "manifests/submitter-role.yaml" in RIGHTS_HINT
    assert (manifests_folder() / "submitter-role.yaml").is_file()
