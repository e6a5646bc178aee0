"""Names are used again, and by others: a run knows its objects, its folder and its cluster by more than their names."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import runs
from launcher.backends.kubernetes import pod, removal
from launcher.backends.kubernetes.client import Client
from launcher.backends.kubernetes.ownership import Owner
from launcher.backends.kubernetes.place import elsewhere
from launcher.backends.kubernetes.states import SENDING_S
from launcher.backends.kubernetes.sync import Syncer
from launcher.backends.kubernetes.text import parse_objects
from launcher.errors import BackendError, SubmissionUnknown
from launcher.run_folder import RunFolder
from launcher.run_identity import FolderTaken, claim_folder
from tests.launcher.standin_api import StandInApi
from tests.shell import Shell

Write = Callable[..., str]
Object = dict[str, Any]
JOBS, FILES = "pytorchjobs", "configmaps"


@pytest.fixture
def api() -> Iterator[StandInApi]:
    server = StandInApi("cluster-a")
    yield server
    server.close()


@pytest.fixture
def other(api: StandInApi) -> Iterator[StandInApi]:
    """Another cluster."""
    server = StandInApi("cluster-b")
    yield server
    server.close()


@pytest.fixture
def place(shell: Shell, api: StandInApi, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The profile ``pods``, whose runs lie on a claim that is not seen here."""
    monkeypatch.setenv("KUBECONFIG", api.kubeconfig(shell.folder / "kube"))
    return write_profile(shell, "/runs")


def write_profile(shell: Shell, mount: str) -> Path:
    data = {"mount": str(shell.folder), "pvc": "data", "read_only": True}
    keys = {"image": "x/y:1", "volumes": [{"mount": mount, "pvc": "shared"}, data]}
    path = shell.folder / "llavajob.yaml"
    path.write_text(yaml.safe_dump({"profiles": {"pods": {"backend": "kubernetes", "kubernetes": keys}}}))
    return path


@pytest.fixture
def asked(recipe: Write) -> str:
    """A recipe whose inputs nobody looks for here."""
    parts = {"language": {"path": "/runs/base"}, "vision": {"path": "/runs/base"}}
    return recipe(model=parts, data={"records": "/runs/records.json", "images": "/runs"}, environment={})


def submit(shell: Shell, recipe: str, name: str, *options: str, **environment: str) -> Any:
    return shell("submit", recipe, "--on", "pods", "--name", name, *options, **environment)


def record_of(runs: Path, name: str) -> Any:
    return json.loads((runs / name / "run.json").read_text())


def sent_of(runs: Path, name: str) -> Any:
    return json.loads((runs / name / "kubernetes/sent.json").read_text())


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def saved(runs: Path, name: str) -> None:
    """What a run leaves that saved its state."""
    place = runs / name / "checkpoints/step-000001"
    place.mkdir(parents=True)
    (place / "COMPLETE").touch()


# Labels


def labels_in(value: Any) -> Iterator[Object]:
    """The metadata of an object, and of every template in it."""
    if isinstance(value, dict):
        if isinstance(value.get("metadata"), dict):
            yield value["metadata"].get("labels") or {}
        for child in value.values():
            yield from labels_in(child)
    elif isinstance(value, list):
        for child in value:
            yield from labels_in(child)


def test_everything_that_is_sent_carries_the_runs_id(
    shell: Shell, api: StandInApi, place: Path, pipeline: Write
) -> None:
    recipe = pipeline(environment={})
    submit(shell, recipe, "all")
    run_id = record_of(shell.runs, "all")["run_id"]
    files, conductor = api.objects[FILES, "all"], api.objects["jobs", "all"]
    made = [parse_objects(text)[0] for name, text in files["data"].items() if name.startswith("object-")]
    assert [obj["kind"] for obj in made] == ["PyTorchJob", "Job", "Job", "Job"]
    found = [labels for obj in (files, conductor, *made) for labels in labels_in(obj)]
    # A file has one, a Job and its pods two, a gang three: its own, the master's and the workers'.
    assert len(found) == 1 + 2 + 3 + 3 * 2
    assert {labels["llavajob/run-id"] for labels in found} == {run_id}
    assert "llavajob/run-id" not in shell("submit", recipe, "--on", "pods", "--name", "dry", "--dry-run").out


# Two people, one name


def test_resume_leaves_another_runs_objects_alone(
    shell: Shell, api: StandInApi, place: Path, asked: str, own_place: Path
) -> None:
    submit(shell, asked, "tour")
    shell("cancel", "tour")
    saved(shell.runs, "tour")
    theirs = own_place / "theirs"
    submit(shell, asked, "tour", LLAVAJOB_RUNS=str(theirs))
    before = {key: obj["metadata"]["uid"] for key, obj in api.objects.items()}
    assert set(before) == {(FILES, "tour"), (JOBS, "tour")}
    api.asked.clear()
    refused = shell("resume", "tour", check=2).err
    assert "PyTorchJob 'tour' is already in namespace 'team' since " in refused
    assert "(run tour in /runs/tour); it belongs to another run" in refused
    assert {key: obj["metadata"]["uid"] for key, obj in api.objects.items()} == before
    assert not [call for call in api.asked if call[0] == "DELETE"]
    assert shell.status("tour")["state"] == "CANCELLED"
    # What is free again is taken.
    shell("cancel", "tour", LLAVAJOB_RUNS=str(theirs))
    shell("resume", "tour")
    assert api.uid(JOBS, "tour") not in ("", before[JOBS, "tour"])


def test_a_second_run_of_a_name_is_refused_with_the_owner(
    shell: Shell, api: StandInApi, place: Path, asked: str, own_place: Path
) -> None:
    submit(shell, asked, "tour")
    theirs = own_place / "theirs"
    refused = shell("submit", asked, "--on", "pods", "--name", "tour", check=2, LLAVAJOB_RUNS=str(theirs)).err
    assert "it belongs to another run" in refused and "--name" in refused
    assert not (theirs / "tour").exists()
    assert shell.status("tour")["state"] == "PENDING"


def test_another_runs_job_is_never_shown_or_ended_as_ones_own(
    shell: Shell, api: StandInApi, place: Path, asked: str, own_place: Path
) -> None:
    submit(shell, asked, "tour")
    for key in list(api.objects):
        del api.objects[key]  # somebody cleans up
    theirs = own_place / "theirs"
    submit(shell, asked, "tour", LLAVAJOB_RUNS=str(theirs))
    job = api.objects[JOBS, "tour"]
    job["status"] = {"conditions": [{"type": "Succeeded", "status": "True"}]}
    mine = shell.status("tour")
    assert mine["state"] == "UNKNOWN" and "PyTorchJob tour is gone" in mine["reason"], mine
    assert shell("status", "tour", "--json", LLAVAJOB_RUNS=str(theirs)).json["state"] == "SUCCEEDED"
    shell("cancel", "tour")
    assert api.objects[JOBS, "tour"] is job and (FILES, "tour") in api.objects
    assert shell.status("tour")["state"] == "CANCELLED"


def without_id(api: StandInApi, runs: Path, name: str) -> None:
    """Make a run one of the version before runs had ids."""
    for obj in api.objects.values():
        for labels in labels_in(obj):
            if labels.get("llavajob/run") == name:
                labels.pop("llavajob/run-id", None)
    record = record_of(runs, name)
    for key in ("run_id", "where"):
        record.pop(key, None)
    (runs / name / "run.json").write_text(json.dumps(record))
    sent = sent_of(runs, name)
    for key in ("where", "folder", "inode"):
        sent.pop(key, None)
    (runs / name / "kubernetes/sent.json").write_text(json.dumps(sent))


def test_runs_of_an_older_version_go_by_name_and_folder(
    shell: Shell, api: StandInApi, place: Path, asked: str, own_place: Path
) -> None:
    submit(shell, asked, "old")
    without_id(api, shell.runs, "old")
    assert shell.status("old")["state"] == "PENDING"
    mine = api.uid(JOBS, "old")
    api.objects[JOBS, "old"]["metadata"]["annotations"]["llavajob/folder"] = "/elsewhere/old"
    shell("cancel", "old")
    assert api.uid(JOBS, "old") == mine and (FILES, "old") not in api.objects
    saved(shell.runs, "old")
    assert "(run old in /elsewhere/old); it belongs to another run" in shell("resume", "old", check=2).err
    del api.objects[JOBS, "old"]
    shell("resume", "old")
    labels = api.objects[JOBS, "old"]["metadata"]["labels"]
    assert labels["llavajob/run"] == "old" and "llavajob/run-id" not in labels
    assert shell.status("old")["state"] == "PENDING"
    shell("cancel", "old")
    assert api.objects == {}


@pytest.mark.parametrize(
    ("owner", "labels", "folder", "owns"),
    [
        (Owner("a", "1", "/r/a"), {"llavajob/run": "a", "llavajob/run-id": "1"}, "/r/a", True),
        (Owner("a", "1", "/r/a"), {"llavajob/run": "a", "llavajob/run-id": "1"}, "/moved/a", True),
        (Owner("a", "1", "/r/a"), {"llavajob/run": "a", "llavajob/run-id": "2"}, "/r/a", False),
        (Owner("a", "1", "/r/a"), {"llavajob/run": "a"}, "/r/a", False),
        (Owner("a", "", "/r/a"), {"llavajob/run": "a", "llavajob/run-id": "2"}, "/r/a", False),
        (Owner("a", "", "/r/a"), {"llavajob/run": "a"}, "/r/a", True),
        (Owner("a", "", "/r/a"), {"llavajob/run": "a"}, "/s/a", False),
        (Owner("a", "", "/r/a"), {"llavajob/run": "b"}, "/r/a", False),
        (Owner("a", "", "/r/a"), {}, "", False),
    ],
)
def test_whose_an_object_is(owner: Owner, labels: dict[str, str], folder: str, owns: bool) -> None:
    obj = {"metadata": {"labels": labels, "annotations": {"llavajob/folder": folder}}}
    assert owner.owns(obj) is owns


def test_an_object_that_took_the_name_in_between_is_not_deleted(
    shell: Shell, api: StandInApi, place: Path, asked: str
) -> None:
    submit(shell, asked, "tour")
    client = Client({})
    old = api.uid(JOBS, "tour")
    api.objects[JOBS, "tour"]["metadata"]["uid"] = "another"
    assert client.delete("PyTorchJob", "tour", uid=old) is False
    assert api.uid(JOBS, "tour") == "another"
    assert client.delete("PyTorchJob", "tour", uid="another") is True


def test_only_the_runs_own_pods_are_listened_to(own_place: Path) -> None:
    folder = RunFolder(own_place / "tour")
    folder.root.mkdir()
    folder.record.write_text(json.dumps({"name": "tour", "run_id": "1", "there": "/runs/tour"}))

    def made(name: str, run_id: str) -> Object:
        status = {"name": "pytorch", "containerID": f"x://{name}", "state": {"running": {}}, "lastState": {}}
        labels = {"llavajob/run": "tour", "llavajob/run-id": run_id}
        return {"metadata": {"name": name, "labels": labels}, "status": {"containerStatuses": [status]}}

    class Both:
        """Stands in for the client; it does not know selectors."""

        def list(self, kind: str, selector: str) -> list[Object]:
            assert (kind, selector) == ("Pod", "llavajob/run-id=1")
            return [made("mine", "1"), made("theirs", "2")]

        def pod_log(self, pod: str, *more: Any, **options: Any) -> bytes:
            return f"2026-11-23T20:00:00.000000000Z metrics.jsonl@0 {pod}\n".encode()

    Syncer(Both(), folder, listen=False).sync()  # type: ignore[arg-type]
    assert folder.metrics.read_text() == "mine\n"


# Copies


def test_a_copied_folder_ends_nothing(shell: Shell, api: StandInApi, place: Path, asked: str, own_place: Path) -> None:
    submit(shell, asked, "tour")
    copies = own_place / "copies"
    shutil.copytree(shell.runs / "tour", copies / "tour")
    shutil.copytree(shell.runs / "tour", shell.runs / "tour-2")
    before = dict(api.objects)
    for name, where in (("tour", copies), ("tour-2", shell.runs)):
        seen = shell("status", name, "--json", LLAVAJOB_RUNS=str(where)).json
        assert seen["state"] == "UNKNOWN" and f"copy of the run at {shell.runs / 'tour'}" in seen["reason"], seen
        refused = shell("cancel", name, check=2, LLAVAJOB_RUNS=str(where)).err
        assert f"is a copy of the run at {shell.runs / 'tour'}" in refused
    assert api.objects == before and shell.status("tour")["state"] == "PENDING"
    shell("cancel", "tour")
    shutil.copytree(shell.runs / "tour", copies / "later")
    saved(copies, "later")
    assert "is a copy" in shell("resume", "later", check=2, LLAVAJOB_RUNS=str(copies)).err


def test_a_folder_that_was_moved_is_the_run_itself(
    shell: Shell, api: StandInApi, place: Path, asked: str, own_place: Path
) -> None:
    submit(shell, asked, "tour")
    moved = own_place / "moved"
    shell.runs.rename(moved)
    assert shell("status", "tour", "--json", LLAVAJOB_RUNS=str(moved)).json["state"] == "PENDING"
    shell("cancel", "tour", LLAVAJOB_RUNS=str(moved))
    assert api.objects == {}


# Clusters


def test_another_cluster_behind_the_same_context_judges_and_ends_nothing(
    shell: Shell, api: StandInApi, other: StandInApi, place: Path, asked: str
) -> None:
    submit(shell, asked, "here")
    there = other.kubeconfig(shell.folder / "kube-b")
    submit(shell, asked, "here-2", KUBECONFIG=there)
    before = dict(other.objects)
    record = record_of(shell.runs, "here")
    assert record["where"] == {"server": api.address, "cluster": "cluster-a", "namespace": "team"}
    seen = shell("status", "here", "--json", KUBECONFIG=there).json
    assert seen["state"] == "UNKNOWN", seen
    words = f"runs on the cluster at {api.address}; asked here is the one at {other.address}"
    assert seen["reason"] == words
    refused = shell("cancel", "here", check=2, KUBECONFIG=there).err
    assert words in refused and "KUBECONFIG" in refused
    shell("resume", "here", check=2, KUBECONFIG=there)
    assert not (shell.runs / "here/cancel.json").exists()
    assert other.objects == before
    assert shell.status("here")["state"] == "PENDING"
    shell("cancel", "here")
    saved(shell.runs, "here")
    assert words in shell("resume", "here", check=2, KUBECONFIG=there).err
    assert other.objects == before and api.objects == {}


def test_a_cluster_is_known_by_its_uid_where_that_may_be_read(
    shell: Shell, api: StandInApi, place: Path, asked: str
) -> None:
    submit(shell, asked, "here")
    # The same cluster at another address.
    by_name = api.kubeconfig(shell.folder / "kube-name", address=api.address.replace("127.0.0.1", "localhost"))
    assert shell("status", "here", "--json", KUBECONFIG=by_name).json["state"] == "PENDING"
    # Another cluster at the same address, as after a cluster on one's own machine was made anew.
    api.cluster = "cluster-c"
    seen = shell.status("here")
    assert seen["state"] == "UNKNOWN" and "another cluster that was at" in seen["reason"], seen
    # Where it may not be read, the address decides.
    api.cluster = ""
    assert shell.status("here")["state"] == "PENDING"
    assert shell("status", "here", "--json", KUBECONFIG=by_name).json["state"] == "UNKNOWN"
    shell("cancel", "here")
    assert api.objects == {}


@pytest.mark.parametrize(
    ("recorded", "here", "same"),
    [
        ({}, {"server": "a", "cluster": "1"}, True),
        ({"server": "a", "cluster": "1"}, {"server": "a", "cluster": "1"}, True),
        ({"server": "a", "cluster": "1"}, {"server": "b", "cluster": "1"}, True),
        ({"server": "a", "cluster": "1"}, {"server": "a", "cluster": ""}, True),
        ({"server": "a", "cluster": ""}, {"server": "a", "cluster": "1"}, True),
        ({"server": "a", "cluster": "1"}, {"server": "a", "cluster": "2"}, False),
        ({"server": "a", "cluster": "1"}, {"server": "b", "cluster": "2"}, False),
        ({"server": "a", "cluster": ""}, {"server": "b", "cluster": "1"}, False),
        ({"server": "a", "cluster": ""}, {"server": "b", "cluster": ""}, False),
    ],
)
def test_when_two_places_are_one(recorded: dict[str, str], here: dict[str, str], same: bool) -> None:
    assert (elsewhere(recorded, here) == "") is same


# What nobody saw


@pytest.mark.parametrize(("lost", "left"), [(FILES, [(FILES, "sent")]), (JOBS, [(FILES, "sent"), (JOBS, "sent")])])
def test_a_lost_answer_leaves_a_run_that_can_be_found_and_ended(
    shell: Shell, api: StandInApi, place: Path, asked: str, monkeypatch: pytest.MonkeyPatch,
    lost: str, left: list[tuple[str, str]],
) -> None:  # fmt: skip
    monkeypatch.setattr(removal, "PATIENCE_S", 0.1)
    monkeypatch.chdir(shell.folder)
    api.lose_answer_to = lost
    prepared = runs.prepare(asked, "pods", "sent", [])
    with pytest.raises(SubmissionUnknown) as error:
        runs.submit(prepared)
    said = f"{error.value.message} {error.value.hint}"
    assert "may have been sent" in said and "llavajob status sent" in said and "llavajob cancel sent" in said
    assert (shell.runs / "sent/run.json").is_file() and sorted(api.objects) == sorted(left)
    api.silent, api.lose_answer_to = False, ""
    seen = shell.status("sent")
    assert (seen["state"], seen["reason"]) == {
        JOBS: ("PENDING", "waits for the training operator to take it up"), FILES: ("PENDING", "being sent"),
    }[lost]  # fmt: skip
    shell("cancel", "sent")
    assert api.objects == {} and shell.status("sent")["state"] == "CANCELLED"


def test_a_run_that_is_cancelled_while_it_is_sent_is_not_left_there(
    shell: Shell, api: StandInApi, place: Path, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shell.folder)
    create = Client.create_once

    def create_slowly(client: Client, obj: Object, *more: Any) -> Object:
        made = create(client, obj, *more)
        if obj["kind"] == "PyTorchJob":
            (shell.runs / "sent/cancel.json").write_text(json.dumps({"by": "somebody"}))
        return made

    monkeypatch.setattr(Client, "create_once", create_slowly)
    run, _ = runs.submit(runs.prepare(asked, "pods", "sent", []))
    assert api.objects == {}
    state = runs.state_of(run)
    assert (state.state, state.reason) == ("CANCELLED", "cancelled by somebody")


def test_an_interrupted_submission_leaves_nothing(
    shell: Shell, api: StandInApi, place: Path, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shell.folder)
    create = Client.create_once

    def create_and_stop(client: Client, obj: Object, *more: Any) -> Object:
        made = create(client, obj, *more)
        if obj["kind"] == "PyTorchJob":
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(Client, "create_once", create_and_stop)
    with pytest.raises(BackendError, match="nothing of it is left") as error:
        runs.submit(runs.prepare(asked, "pods", "stopped", []))
    assert error.value.exit_code == 130
    assert api.objects == {} and not (shell.runs / "stopped").exists()


def test_an_object_that_went_unseen_is_no_verdict(shell: Shell, api: StandInApi, place: Path, asked: str) -> None:
    submit(shell, asked, "short")
    api.objects.clear()
    seen = shell.status("short")
    assert seen["state"] == "UNKNOWN" and "Look on the volume: /runs/short/steps" in seen["reason"], seen
    assert sent_of(shell.runs, "short")["end"] is None
    # Its last word was heard before; then nothing more was.
    (shell.runs / "short/steps").mkdir()
    (shell.runs / "short/steps/train.json").write_text(json.dumps({"state": "RUNNING", "attempt": 0}))
    assert shell.status("short")["state"] == "UNKNOWN"
    (shell.runs / "short/steps/train.json").write_text(json.dumps({"state": "SUCCEEDED", "attempt": 0}))
    assert shell.status("short")["state"] == "SUCCEEDED"


def test_an_object_that_was_seen_going_was_deleted(shell: Shell, api: StandInApi, place: Path, asked: str) -> None:
    submit(shell, asked, "cut")
    api.objects[JOBS, "cut"]["metadata"]["deletionTimestamp"] = "2026-11-23T20:00:00Z"
    assert shell.status("cut")["reason"] == "is being deleted"
    api.objects.clear()
    seen = shell.status("cut")
    assert (seen["state"], seen["reason"]) == ("FAILED", "PyTorchJob cut was deleted by somebody else")


def test_a_pipeline_whose_conductor_went_unseen(shell: Shell, api: StandInApi, place: Path, pipeline: Write) -> None:
    submit(shell, pipeline(environment={}), "pipe")
    api.objects.clear()
    seen = shell.status("pipe")
    assert seen["state"] == "UNKNOWN" and "Job pipe is gone, and nobody saw how it ended" in seen["reason"], seen


def test_where_the_folder_is_seen_its_silence_is_a_verdict(
    shell: Shell, api: StandInApi, place: Path, asked: str
) -> None:
    write_profile(shell, str(shell.runs))
    submit(shell, asked, "seen")
    assert (shell.runs / "seen/run_id").read_text().strip() == record_of(shell.runs, "seen")["run_id"]
    api.objects.clear()
    seen = shell.status("seen")
    assert (seen["state"], seen["reason"]) == ("FAILED", "PyTorchJob seen was deleted by somebody else")


def test_an_interrupted_submission(shell: Shell, api: StandInApi, place: Path, asked: str) -> None:
    submit(shell, asked, "half")
    api.objects.clear()
    sent = shell.runs / "half/kubernetes/sent.json"
    change(sent, complete=False)
    assert shell.status("half")["reason"] == "being sent"
    change(sent, complete=False, submitted=time.time() - SENDING_S - 1)
    seen = shell.status("half")
    assert seen["state"] == "UNKNOWN" and "may have been there" in seen["reason"], seen
    change(sent, newer_key=1)
    shell("cancel", "half")
    assert shell.status("half")["state"] == "CANCELLED"
    sent.unlink()
    assert shell.status("half")["reason"] == "being sent"


# The folder on a volume


def test_every_pod_ends_in_a_strangers_folder(
    shell: Shell, api: StandInApi, place: Path, pipeline: Write, own_place: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Gang, task, shard and merge: nothing is written there, and the reason is left with the pod."""
    claim = own_place / "claim"
    write_profile(shell, str(claim))
    submit(shell, pipeline(environment={}), "night", "--set", f"kubernetes.runs={claim}")
    plan = own_place / "plan.yaml"
    plan.write_text(api.objects[FILES, "night"]["data"]["plan.yaml"])
    claim_folder(claim / "night", "0123456789abcdef")
    notes = list[str]()
    monkeypatch.setattr(pod, "leave_note", notes.append)
    monkeypatch.setenv("LLAVAJOB_PLAN", str(plan))
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    for step in ("learn", "merge", "score", "score-merge"):
        assert pod.main([step]) == 2, step
        assert f"the folder {claim}/night belongs to another run (id 0123456789abcdef)" in notes[-1]
        assert notes[-1] in capsys.readouterr().out
    assert len(notes) == 4 and [path.name for path in (claim / "night").iterdir()] == ["run_id"]


def test_the_conductor_ends_in_a_strangers_folder_and_takes_no_strangers_object(
    shell: Shell, api: StandInApi, place: Path, pipeline: Write, own_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launcher.backends.kubernetes import conduct

    claim = own_place / "claim"
    write_profile(shell, str(claim))
    submit(shell, pipeline(environment={}), "night", "--set", f"kubernetes.runs={claim}")
    files = own_place / "files"
    files.mkdir()
    for name, text in api.objects[FILES, "night"]["data"].items():
        (files / name).write_text(text)
    notes = list[str]()
    monkeypatch.setattr(conduct, "leave_note", notes.append)
    monkeypatch.setenv("LLAVAJOB_PLAN", str(files / "plan.yaml"))
    monkeypatch.setattr(conduct, "_POLL_S", 0.01)
    (learn,) = parse_objects((files / "object-learn.yaml").read_text())
    learn["metadata"]["labels"]["llavajob/run-id"] = "0123456789abcdef"
    Client({}).create(learn)
    assert conduct.main() == 1
    assert "PyTorchJob 'night-learn' is there already, of another run" in notes[0]
    (claim / "night/run_id").write_text("0123456789abcdef\n")
    assert conduct.main() == 2
    assert "belongs to another run" in notes[1]
    policy = api.objects["jobs", "night"]["spec"]["podFailurePolicy"]["rules"][1]
    assert (policy["action"], policy["onExitCodes"]["values"]) == ("FailJob", [1, 2])


def test_who_submits_again_into_a_removed_folder_meets_no_old_pods(
    shell: Shell, api: StandInApi, place: Path, asked: str
) -> None:
    """The folder of a run is removed by hand and its name used again while the old pods go on."""
    write_profile(shell, str(shell.runs))
    submit(shell, asked, "tour")
    old = record_of(shell.runs, "tour")["run_id"]
    shutil.rmtree(shell.runs / "tour")
    api.objects.clear()
    submit(shell, asked, "tour")
    with pytest.raises(FolderTaken):
        claim_folder(shell.runs / "tour", old)
    assert os.listdir(shell.runs) == ["tour"]
