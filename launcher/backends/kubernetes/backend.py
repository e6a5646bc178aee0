"""The Kubernetes backend: the commands of the launcher, on a cluster with the training operator."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import console
from launcher.asking import attempt_to, judge
from launcher.backends.base import ENDED, SUCCEEDED, UNKNOWN, BackendState, StepState
from launcher.backends.kubernetes import removal
from launcher.backends.kubernetes.files import Part, Sent, load_sent
from launcher.backends.kubernetes.guards import require_free, require_own, require_place, runs_elsewhere
from launcher.backends.kubernetes.ownership import folder_number, original_of, owner_of_plan, owner_of_run
from launcher.backends.kubernetes.place import describe_place, silent_place
from launcher.backends.kubernetes.removal import MADE_KINDS, clear_away, persist, take_back
from launcher.backends.seen import never_sent
from launcher.doctor import Finding
from launcher.errors import BackendError, NotAnswering, SubmissionUnknown
from launcher.plan import Plan, Step
from launcher.profiles import Profile
from launcher.reach import Reach
from launcher.run_folder import RunFolder, write_json
from launcher.run_identity import claim_folder
from launcher.step_word import word_file
from launcher.store import Run
from launcher.user import user_name

if TYPE_CHECKING:
    from launcher.backends.kubernetes.client import Client
    from launcher.backends.kubernetes.states import Answer

_FRESH_S = 2.0
"""Answers so old still count: several commands look at the same run many times a second."""
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
        """Which cluster and namespace a run will be in; a silent server's cluster is found out when it is sent."""
        from launcher.backends.kubernetes.client import Client

        client = Client(plan.settings)
        try:
            return describe_place(client)
        except NotAnswering:
            return silent_place(client)

    def reach(self, profile: Profile) -> Reach:
        from launcher.backends.kubernetes.reach import PodReach

        return PodReach(profile)

    def submit(self, run: Run, plan: Plan) -> list[str]:
        """Have the server check every object, then create the ConfigMap and what it is for."""
        try:
            return self._submit(run, plan)
        except KeyboardInterrupt:
            interrupted = BackendError("interrupted; nothing of it is left in the cluster")
            interrupted.exit_code = 130
            raise interrupted from None

    def _submit(self, run: Run, plan: Plan) -> list[str]:
        from launcher.backends.kubernetes.client import Client
        from launcher.backends.kubernetes.objects import objects_to_send, open_steps, step_object

        client, owner = Client(plan.settings), owner_of_plan(plan)
        here = persist(lambda: describe_place(client))
        before = load_sent(run.folder)
        if before.parts:
            require_own(run, before)
            require_place(run, before, here, client.context)
        sent = _sent(run.folder, client, plan, before)
        objects = objects_to_send(plan)
        steps = [step_object(plan, step) for step in open_steps(plan) if sent.conductor]
        for obj in [*reversed(objects), *steps]:
            persist(lambda obj=obj: require_free(client, owner, obj))  # type: ignore[misc]
        if plan.folder == run.folder.root:
            # Who removes the folder and submits another run of the name must not meet the old one's pods there.
            claim_folder(run.folder.root, plan.run_id)
        if before.parts:
            clear_away(owner, client)
            for step in plan.steps:
                _forget_words(run.folder, step, sent)
        for obj in [*objects, *steps]:
            persist(lambda obj=obj: client.create(obj, dry_run=True))  # type: ignore[misc]
        sent.where, sent.folder, sent.inode = here, str(run.folder.root), folder_number(run.folder.root)
        sent.save(run.folder)
        _let_pods_write(run.folder, plan)
        try:
            for obj in objects:
                client.create_once(obj, removal.PATIENCE_S, console.say)
            if run.folder.cancel_request.exists():
                clear_away(owner, client)  # somebody did not want to wait for it
            sent.complete = True
            sent.save(run.folder)
        except BaseException as error:
            if take_back(client, owner, objects):
                if before.parts:
                    before.save(run.folder)
                raise
            raise SubmissionUnknown(_may_be_there(error, client)) from error
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

        sent = load_sent(run.folder)
        client = Client(sent.place)
        require_own(run, sent)
        require_place(run, sent, persist(lambda: describe_place(client)), sent.context)
        who = f"{user_name()}@{socket.gethostname()}"
        write_json(run.folder.cancel_request, {"by": who, "time": time.time()})
        clear_away(owner_of_run(run), client, lambda: _quietly_mirror(run, sent))
        _forget_answers()
        return self.states([run])[0]

    def examine(self, profile: Profile) -> Iterator[Finding]:
        from launcher.backends.kubernetes.doctor import examine

        return examine(profile)


def _judged(run: Run, sent: Sent, answers: dict[tuple[str, ...], Answer]) -> BackendState:
    if sent.end is not None:
        return sent.end
    if not sent.parts:
        return never_sent(run.created)
    return _state(run, sent, answers[tuple(sent.place.values())])


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
        kind = str(step_object(plan, step)["kind"])
        parts.append(Part(state, kind, object_name(plan, step), list(step.members)))
    conductor = plan.run if has_conductor(plan) else ""
    return Sent(client.context, client.namespace, conductor, parts, time.time())


def _forget_words(folder: RunFolder, step: Step, sent: Sent) -> None:
    """Forget what a step that is started anew said last."""
    if not any(part.kind and part.step.name == step.name for part in sent.parts):
        return
    for number in (None, *range(step.nodes)) if step.kind == "array" else (None,):
        word_file(folder, step.name, number).unlink(missing_ok=True)


def _let_pods_write(folder: RunFolder, plan: Plan) -> None:
    """Where the folder made here is the pods' own, let another user's pods write there."""
    from launcher.backends.kubernetes.sharing import not_shared, share_folder

    if plan.folder == folder.root and not share_folder(folder.root, plan.settings):
        console.say(f"Note: {not_shared(folder.root.parent, plan.settings)}")


def _may_be_there(error: BaseException, client: Client) -> str:
    why = error.message if isinstance(error, BackendError) else "the submission was interrupted"
    return f"{why}; the run may have been sent to {client.server()}, and may start there"


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
    where = silent_place(client)
    try:
        where = describe_place(client)
        objects = [obj for kind in MADE_KINDS for obj in client.list(kind, selector)]
        pods = client.list("Pod", selector)
        events = waiting_events(client, objects, pods)
    except NotAnswering as error:
        return Answer(trouble=error.message, where=where)
    return Answer({(str(o["kind"]), str(o["metadata"]["name"])): o for o in objects}, pods, events, where=where)


def _state(run: Run, sent: Sent, answer: Answer) -> BackendState:
    """Where a run is that has not ended as far as is known; nothing of another run's is taken for its own."""
    from launcher.backends.kubernetes.states import run_state

    original = original_of(run, sent.folder, sent.inode)
    if original:
        return _unknown(sent, f"this is a copy of the run at {original}: look there")
    reason = runs_elsewhere(run, sent, answer.where)
    if reason:
        return _unknown(sent, reason)
    own = answer.of(owner_of_run(run))
    _note_what_is_there(sent, own)
    if not answer.trouble:
        _quietly_mirror(run, sent)
    there = str(run.record.get("there", run.folder.root))
    return _remembered(run.folder, sent, run_state(run.folder, sent, own, (_apart(run) and there) or ""))


def _unknown(sent: Sent, reason: str) -> BackendState:
    steps = [part.step for part in sent.parts]
    for step in steps:
        step.state = UNKNOWN
    return BackendState(UNKNOWN, reason, stage=steps[0].stage if steps else "", steps=steps)


def _apart(run: Run) -> bool:
    """Whether pods keep the run in a folder that is not the one here."""
    return bool(run.record.get("there", str(run.folder.root)) != str(run.folder.root))


def _note_what_is_there(sent: Sent, answer: Answer) -> None:
    """Note what may be missing at the next look: what was seen once was sent, and what was seen going was deleted."""
    for part in sent.parts:
        obj = answer.objects.get((part.kind, part.name))
        if obj is not None:
            part.deleting = bool(obj["metadata"].get("deletionTimestamp"))
            sent.complete = sent.complete or not sent.conductor
    if ("Job", sent.conductor) in answer.objects:
        sent.complete = True


def _mirror(run: Run, sent: Sent) -> list[str]:
    """Bring in what the pods have told, where the run's own folder is not the one that is seen here.

    Returns:
        which logs could not be read, in words.

    Raises:
        NotAnswering: the server is silent.
        BackendError: it refuses to list the pods.
    """
    if not _apart(run):
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
    before = load_sent(folder)
    if before.submitted != sent.submitted or not os.access(Path(folder.root), os.W_OK):
        return state  # it was submitted again since we looked
    if state.state in ENDED:
        sent.end = state
    if sent != before:
        # Looking never needs to write: on a full disk, the next look remembers it.
        with suppress(OSError):
            sent.save(folder)
    return state
