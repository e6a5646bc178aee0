"""The Kubernetes backend: the commands of the launcher, on a cluster with the training operator."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import console
from launcher.asking import attempt_to, judge
from launcher.backends.base import ENDED, SUCCEEDED, UNKNOWN, BackendState, StepState
from launcher.backends.kubernetes.files import Part, Sent, load_sent
from launcher.backends.seen import never_sent
from launcher.doctor import Finding
from launcher.errors import BackendError, NotAnswering
from launcher.patience import insist
from launcher.plan import Plan
from launcher.profiles import Profile
from launcher.reach import Reach
from launcher.run_folder import RunFolder, write_json
from launcher.step_word import word_file
from launcher.store import Run

if TYPE_CHECKING:
    from launcher.backends.kubernetes.client import Client
    from launcher.backends.kubernetes.states import Answer

PATIENCE_S = 180.0
"""How long a server that does not answer is asked again to take, or to end, a run."""
_GONE_S = 300.0
"""How long pods may take to go, beside the time that they have to save."""
_POLL_S = 0.5
_FRESH_S = 2.0
"""Answers so old still count: several commands look at the same run many times a second."""
_KINDS = ("PyTorchJob", "Job")
_MOST_BY_NAME = 50
"""More runs than these are asked for by what made them, not by name."""


class KubernetesBackend:
    """Sends objects, and follows them through the API server and the run's folder or its mirror."""

    suffix = ".yaml"
    sees_files = False

    def render(self, plan: Plan) -> str:
        from launcher.backends.kubernetes.render import render_objects

        return render_objects(plan)

    def check(self, plan: Plan) -> list[str]:
        """Say what can be known to be missing before the cluster is asked."""
        from launcher.backends.kubernetes.checks import check_plan

        return check_plan(plan)

    def where(self, plan: Plan) -> dict[str, str]:
        return {}

    def reach(self, profile: Profile) -> Reach:
        from launcher.backends.kubernetes.reach import PodReach

        return PodReach(profile)

    def submit(self, run: Run, plan: Plan) -> list[str]:
        """Have the server check every object, then create the ConfigMap and what it is for."""
        from launcher.backends.kubernetes.client import Client
        from launcher.backends.kubernetes.objects import objects_to_send, open_steps, step_object

        client = Client(plan.settings)
        before = load_sent(run.folder)
        if before.parts:
            _clear_away(run.folder, client, before)
        sent = _sent(run.folder, client, plan, before)
        objects = objects_to_send(plan)
        for obj in [*objects, *(step_object(plan, step) for step in open_steps(plan) if sent.conductor)]:
            _insist(lambda obj=obj: client.create(obj, dry_run=True))  # type: ignore[misc]
        sent.save(run.folder)
        try:
            for obj in objects:
                client.create_once(obj, PATIENCE_S, console.say)
        except BaseException:
            _take_back(client, objects)
            raise
        sent.complete = True
        sent.save(run.folder)
        return [str(objects[-1]["metadata"]["name"])]

    def states(self, runs: Sequence[Run]) -> list[BackendState]:
        """Three queries for each cluster and namespace, whatever the number of runs; none for those that have ended."""
        known = [attempt_to(partial(load_sent, run.folder)) for run in runs]
        active = [
            (run, sent)
            for run, sent in zip(runs, known, strict=True)
            if not isinstance(sent, str) and sent.end is None and sent.parts
        ]
        answers = _ask(active)
        return [
            BackendState(UNKNOWN, sent) if isinstance(sent, str) else judge(partial(_judged, run, sent, answers))
            for run, sent in zip(runs, known, strict=True)
        ]

    def fetch_logs(self, run: Run) -> list[str]:
        try:
            return _mirror(run, load_sent(run.folder))
        except BackendError as error:
            return [f"{error.message}; what was brought before is shown"]

    def cancel(self, run: Run) -> BackendState:
        """Delete the conductor, then the objects; return when every pod has saved and gone."""
        from launcher.backends.kubernetes.client import Client

        who = f"{getpass.getuser()}@{socket.gethostname()}"
        write_json(run.folder.cancel_request, {"by": who, "time": time.time()})
        sent = load_sent(run.folder)
        _clear_away(run.folder, Client(sent.place), sent, lambda: _quietly_mirror(run, sent))
        _forget_answers()
        return self.states([run])[0]

    def examine(self, profile: Profile) -> Iterator[Finding]:
        from launcher.backends.kubernetes.doctor import examine

        return examine(profile)


def _judged(run: Run, sent: Sent, answers: dict[tuple[str, ...], Answer]) -> BackendState:
    from launcher.backends.kubernetes.states import run_state

    if sent.end is not None:
        return sent.end
    if not sent.parts:
        return never_sent(run.created)
    answer = answers[tuple(sent.place.values())]
    if not answer.trouble:
        _quietly_mirror(run, sent)
    return _remembered(run.folder, sent, run_state(run.folder, sent, answer))


def _sent(folder: RunFolder, client: Client, plan: Plan, before: Sent) -> Sent:
    """What will have been sent: a step that is done keeps what it was."""
    from launcher.backends.kubernetes.objects import has_conductor, object_name, open_steps, step_object

    ended = {step.name: step for step in before.end.steps} if before.end else {}
    opened = {step.name for step in open_steps(plan)}
    parts = []
    for step in plan.steps:
        state = StepState(step.name, step.stage, step.kind, attempt=step.attempt)
        if step.name not in opened:
            state = ended.get(step.name, state)
            state.state = SUCCEEDED
            parts.append(Part(state))
            continue
        for number in (None, *range(step.nodes)) if step.kind == "array" else (None,):
            word_file(folder, step.name, number).unlink(missing_ok=True)
        kind = str(step_object(plan, step)["kind"])
        parts.append(Part(state, kind, object_name(plan, step), list(step.members)))
    conductor = plan.run if has_conductor(plan) else ""
    return Sent(client.context, client.namespace, conductor, parts, time.time())


def _take_back(client: Client, objects: Sequence[dict[str, Any]]) -> None:
    """Delete what was created of a submission that failed, as far as the server lets us."""
    for obj in reversed(objects):
        try:
            found = client.get(str(obj["kind"]), str(obj["metadata"]["name"]))
            if found is not None and found["metadata"].get("annotations") == obj["metadata"]["annotations"]:
                client.delete(str(obj["kind"]), str(obj["metadata"]["name"]))
        except BackendError:
            return


def _clear_away(folder: RunFolder, client: Client, sent: Sent, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Delete a run's objects, the one that makes others first, and wait until their pods are gone."""
    from launcher.backends.kubernetes.labels import RUN_LABEL

    selector = f"{RUN_LABEL}={folder.name}"
    meanwhile()
    if sent.conductor:
        _insist(lambda: client.delete("Job", sent.conductor))
        _wait_gone(lambda: [p for p in client.list("Pod", f"{selector},llavajob/step=conductor")], meanwhile)
    for kind in _KINDS:
        _insist(lambda kind=kind: client.delete_all(kind, selector))  # type: ignore[misc]
    _wait_gone(lambda: [obj for kind in ("Pod", *_KINDS) for obj in client.list(kind, selector)], meanwhile)
    _insist(lambda: client.delete_all("ConfigMap", selector))
    # Its name is taken until the cluster's garbage collector has been there.
    _wait_gone(lambda: [*client.list("ConfigMap", selector)], meanwhile)


def _wait_gone(left: Callable[[], list[dict[str, Any]]], meanwhile: Callable[[], None]) -> None:
    grace_s, start = 0.0, time.monotonic()
    while found := _insist(left):
        graces = [float((obj.get("spec") or {}).get("terminationGracePeriodSeconds") or 0.0) for obj in found]
        grace_s = max(grace_s, *graces)
        if time.monotonic() - start > grace_s + _GONE_S:
            names = ", ".join(f"{obj['kind']} {obj['metadata']['name']}" for obj in found)
            raise BackendError(f"still there after {grace_s + _GONE_S:.0f} s: {names}", "See: kubectl describe")
        meanwhile()
        time.sleep(_POLL_S)


def _insist(call: Callable[[], Any]) -> Any:
    return insist(call, PATIENCE_S, console.say)


# Looking

_answers: dict[tuple[object, ...], tuple[float, Answer]] = {}


def _forget_answers() -> None:
    _answers.clear()


def _ask(active: Sequence[tuple[Run, Sent]]) -> dict[tuple[str, ...], Answer]:
    """Ask each place about its runs; answers of a moment ago still count."""
    names: dict[tuple[str, ...], list[str]] = {}
    for run, sent in active:
        names.setdefault(tuple(sent.place.values()), []).append(run.name)
    found = {}
    for place, runs in names.items():
        key = (*place, *runs)
        moment, answer = _answers.get(key, (0.0, None))
        if answer is None or time.monotonic() - moment > _FRESH_S:
            answer = _query(place, runs)
            _answers[key] = time.monotonic(), answer
        found[place] = answer
    return found


def _query(place: tuple[str, ...], runs: Sequence[str]) -> Answer:
    from launcher.backends.kubernetes.client import Client
    from launcher.backends.kubernetes.events import waiting_events
    from launcher.backends.kubernetes.labels import MANAGED_LABEL, MANAGER, RUN_LABEL
    from launcher.backends.kubernetes.states import Answer

    few = len(runs) <= _MOST_BY_NAME
    selector = f"{RUN_LABEL} in ({','.join(runs)})" if few else f"{MANAGED_LABEL}={MANAGER}"
    client = Client({"context": place[0], "namespace": place[1]})
    try:
        objects = [obj for kind in _KINDS for obj in client.list(kind, selector)]
        pods = client.list("Pod", selector)
        events = waiting_events(client, objects, pods)
    except NotAnswering as error:
        return Answer(trouble=error.message)
    return Answer({(str(o["kind"]), str(o["metadata"]["name"])): o for o in objects}, pods, events)


def _mirror(run: Run, sent: Sent) -> list[str]:
    """Bring in what the pods have told, where the run's own folder is not the one that is seen here.

    Returns:
        which logs could not be read, in words.

    Raises:
        NotAnswering: the server is silent.
        BackendError: it refuses to list the pods.
    """
    if run.record.get("there", str(run.folder.root)) == str(run.folder.root):
        return []
    from launcher.backends.kubernetes.client import Client
    from launcher.backends.kubernetes.sync import sync

    return sync(Client(sent.place), run.folder)


def _quietly_mirror(run: Run, sent: Sent) -> None:
    """Bring in what can be had now; the next look brings the rest."""
    with suppress(NotAnswering, OSError):  # a full disk, or a folder that may only be read
        _mirror(run, sent)


def _remembered(folder: RunFolder, sent: Sent, state: BackendState) -> BackendState:
    """Keep the end of a run in its folder: objects are deleted, and need not be asked for again."""
    if state.state in ENDED and os.access(Path(folder.root), os.W_OK):
        sent.end = state
        # Looking never needs to write: on a full disk, the next look remembers it.
        with suppress(OSError):
            sent.save(folder)
    return state
