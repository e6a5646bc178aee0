"""Where a run on Kubernetes is: what its steps said themselves, what their objects say, and why their pods wait."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from launcher.backends.base import (
    CANCELLED,
    ENDED,
    FAILED,
    PENDING,
    REQUEUED,
    RUNNING,
    STARTING,
    SUCCEEDED,
    UNKNOWN,
    BackendState,
    StepState,
)
from launcher.backends.kubernetes.counts import wanted_pods
from launcher.backends.kubernetes.files import Part, Sent
from launcher.backends.kubernetes.labels import CONDUCTOR, RUN_LABEL, STEP_LABEL
from launcher.backends.kubernetes.ownership import Owner
from launcher.backends.kubernetes.waiting import why_pending, why_too_few
from launcher.backends.kubernetes.words import NOT_TAKEN_UP, job_state, why_ended
from launcher.backends.seen import Seen, as_step, together, whole_run
from launcher.run_folder import RunFolder
from launcher.step_word import Word, read_word

SENDING_S = 300.0
"""So long a submission may take, with a server that does not answer."""
_INDEX_LABEL = "batch.kubernetes.io/job-completion-index"

Object = dict[str, Any]


@dataclass
class Answer:
    """What the cluster knows of some runs."""

    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    """PyTorchJobs and Jobs, by kind and name."""
    pods: list[Object] = field(default_factory=list)
    events: list[Object] = field(default_factory=list)
    trouble: str = ""
    """Why nothing is known."""
    where: dict[str, str] = field(default_factory=dict)
    """Which server was asked."""
    volume: str = ""
    """The run's folder in its pods, where it is not seen here."""

    def of(self, owner: Owner) -> Answer:
        """What of it is one run's: others may have, or have had, objects of the same names."""
        objects = {key: obj for key, obj in self.objects.items() if owner.owns(obj)}
        return replace(self, objects=objects, pods=[pod for pod in self.pods if owner.owns(pod)])

    def pods_of(self, run: str, step: str) -> list[Object]:
        """The pods of a step, or of the conductor."""
        wanted = {RUN_LABEL: run, STEP_LABEL: step}
        return [pod for pod in self.pods if wanted.items() <= (pod["metadata"].get("labels") or {}).items()]


def run_state(run: RunFolder, sent: Sent, answer: Answer, volume: str = "") -> BackendState:
    """Put a run's state together from its steps'.

    Args:
        run: the run's folder here.
        sent: what was sent of it.
        answer: what the cluster knows of this run.
        volume: the run's folder in its pods, where that is another: what they wrote last may not be known here.
    """
    answer = replace(answer, volume=volume)
    conductor = _conductor(run, sent, answer)
    seen: list[tuple[StepState, str]] = []
    for part in sent.parts:
        one = _step(run, sent, part, answer, conductor, [state.state for state, _ in seen])
        seen.append((as_step(part.step, one), one.reason))
    names = [sent.conductor] if sent.conductor else [part.name for part in sent.parts if part.kind]
    return whole_run(run, seen, names)


def _conductor(run: RunFolder, sent: Sent, answer: Answer) -> Seen | None:
    """The pod that starts the steps; None where there is none."""
    if not sent.conductor:
        return None
    obj, pods = answer.objects.get(("Job", sent.conductor)), answer.pods_of(run.name, CONDUCTOR)
    if obj is None:
        return Seen(PENDING, answer.trouble) if answer.trouble else _absent(run, sent, "Job", sent.conductor, answer)
    state, reason = job_state(obj)
    if state == FAILED:
        return Seen(FAILED, _note(pods) or why_ended(pods) or reason)
    return Seen(state, why_pending(pods, answer.events, obj) if state in (PENDING, STARTING) else reason)


def _step(
    run: RunFolder, sent: Sent, part: Part, answer: Answer, conductor: Seen | None, before: Sequence[str]
) -> Seen:
    """One step.

    Args:
        conductor: who starts it; None: it was sent as it is.
        before: the states of the steps before it.
    """
    if not part.kind:
        return Seen(part.step.state, "", part.step.attempt, part.step.started, part.step.ended)
    obj = answer.objects.get((part.kind, part.name))
    if obj is not None:
        pods = answer.pods_of(run.name, part.step.name)
        return _array(run, part, obj, pods, answer) if part.members else _alone(run, part, obj, pods, answer)
    word = _last_word(run, part)
    said = Seen(word.state, word.reason, word.attempt or part.step.attempt, word.started, word.ended)
    if word.state in ENDED:
        return said
    if answer.trouble:
        return replace(said, state=word.state or PENDING, reason=f"{answer.trouble}; this is the last that was known")
    if word.state:
        gone = _gone(run, part.kind, part.name, answer, part.deleting)
        return replace(said, state=gone.state, reason=gone.reason)
    if conductor is None:
        absent = _absent(run, sent, part.kind, part.name, answer, part.deleting)
        return replace(absent, attempt=part.step.attempt)
    waits = _not_started(conductor, before)
    return replace(waits, reason=waits.reason.removeprefix(f"{part.step.name}: "), attempt=part.step.attempt)


def _last_word(run: RunFolder, part: Part) -> Word:
    if not part.members:
        word = read_word(run, part.step.name)
        return word if word.attempt >= part.step.attempt else Word()
    words = [read_word(run, part.step.name, number) for number in part.members]
    new = [word for word in words if word.state and word.attempt >= part.step.attempt]
    if new and len(new) == len(words) and all(word.state == SUCCEEDED for word in new):
        return replace(new[-1], ended=max(word.ended or 0.0 for word in new))
    return replace(new[-1], state=RUNNING) if new else Word()


def _absent(run: RunFolder, sent: Sent, kind: str, name: str, answer: Answer, deleting: bool = False) -> Seen:
    """What was sent, or was to be sent, and is not there."""
    if sent.complete or run.cancel_request.exists():
        return _gone(run, kind, name, answer, deleting)
    if time.time() - sent.submitted < SENDING_S:
        return Seen(PENDING, "being sent")
    if answer.volume:
        return Seen(
            UNKNOWN,
            f"its submission was interrupted, and {kind} {name} is not there: it may have been there. "
            f"{_look(run, answer)}",
        )
    return Seen(FAILED, "it was never sent: its submission was interrupted")


def _gone(run: RunFolder, kind: str, name: str, answer: Answer, deleting: bool) -> Seen:
    """What was there, and is not any more: only what was seen of it says how it ended.

    What ends may be cleaned up before anybody looks; where the pods' folder is seen here, its end would stand there.
    """
    if answer.volume and not deleting and not run.cancel_request.exists():
        return Seen(UNKNOWN, f"{kind} {name} is gone, and nobody saw how it ended. {_look(run, answer)}")
    return Seen(FAILED, f"{kind} {name} was deleted by somebody else")


def _look(run: RunFolder, answer: Answer) -> str:
    """Where the run's own word is, and what settles the matter."""
    return f"Look on the volume: {answer.volume}/steps. If it is over: llavajob cancel {run.name}"


def _not_started(conductor: Seen, before: Sequence[str]) -> Seen:
    """A step without an object yet."""
    next_one = all(state == SUCCEEDED for state in before)
    # The conductor needs a moment to notice; then it starts nothing more.
    if {FAILED, CANCELLED} & {*before} or (conductor.state == FAILED and not next_one):
        return Seen(CANCELLED, "a step before it failed")
    if conductor.state == FAILED or (conductor.state == UNKNOWN and next_one):
        return Seen(conductor.state, conductor.reason)
    if not next_one:
        return Seen(PENDING, "waits for the step before it")
    return Seen(PENDING, conductor.reason or "its conductor is about to create it")


def _alone(run: RunFolder, part: Part, obj: Object, pods: Sequence[Object], answer: Answer) -> Seen:
    """A gang, a task or a merge."""
    word = _last_word(run, part)
    state, reason = job_state(obj)
    said = Seen(word.state, word.reason, word.attempt or part.step.attempt, word.started, word.ended)
    # A job may start a task again after it said that it failed; a gang counts for itself.
    if word.state == SUCCEEDED or (word.state == FAILED and part.step.kind == "gang"):
        return said
    if state == SUCCEEDED:
        return replace(said, state=state, reason="", ended=said.ended or _ended(obj))
    if state in (FAILED, CANCELLED):
        told = word.reason if word.state == FAILED else ""
        return replace(said, state=state, reason=told or why_ended(pods) or reason, ended=said.ended or _ended(obj))
    return _going_on(said, word, state, reason, obj, pods, answer)


def _going_on(
    said: Seen, word: Word, state: str, reason: str, obj: Object, pods: Sequence[Object], answer: Answer
) -> Seen:
    too_few = len(pods) < wanted_pods(obj)
    waits = why_pending(pods, answer.events, obj) if too_few or not _all_run(pods) else ""
    if pods and reason == NOT_TAKEN_UP:
        few = f"{len(pods)} of {wanted_pods(obj)} pods are there" if too_few else ""
        reason = word.reason or few
    if word.state == RUNNING and not waits:
        return replace(said, reason="")
    if word.state in (RUNNING, REQUEUED):
        return replace(
            said, state=REQUEUED if waits else word.state, reason="; ".join(filter(None, [word.reason, waits]))
        )
    if state in (PENDING, STARTING) or waits:
        return replace(said, state=PENDING, reason=waits or reason)
    return replace(said, state=STARTING, reason=word.reason)


def _all_run(pods: Sequence[Object]) -> bool:
    return bool(pods) and all(pod.get("status", {}).get("phase") in ("Running", "Succeeded") for pod in pods)


def _array(run: RunFolder, part: Part, obj: Object, pods: Sequence[Object], answer: Answer) -> Seen:
    """The shards of an Indexed Job."""
    state, reason = job_state(obj)
    status = obj.get("status") or {}
    done, failed = _indexes(status.get("completedIndexes")), _indexes(status.get("failedIndexes"))
    too_few = why_too_few(pods, answer.events, obj)
    seen = []
    for index, number in enumerate(part.members):
        word, own = read_word(run, part.step.name, number), [pod for pod in pods if _index(pod) == index]
        word = word if word.attempt >= part.step.attempt else Word()
        seen.append(_shard(part, word, own, index in done, index in failed or state == FAILED, obj, answer, too_few))
    whole = together(seen, part.members)
    if state in ENDED and whole.state not in ENDED:
        return replace(whole, state=state, reason=reason, ended=_ended(obj))
    if whole.state not in ENDED and too_few not in whole.reason:
        return replace(whole, reason="; ".join(filter(None, [whole.reason, too_few])))
    return whole if whole.reason or state != PENDING else replace(whole, reason=reason)


def _shard(
    part: Part, word: Word, pods: Sequence[Object], done: bool, failed: bool, obj: Object, answer: Answer, too_few: str
) -> Seen:
    said = Seen(word.state, word.reason, part.step.attempt, word.started, word.ended)
    if done or word.state == SUCCEEDED:
        return replace(said, state=SUCCEEDED, reason="")
    if failed:
        told = word.reason if word.state == FAILED else ""
        return replace(said, state=FAILED, reason=told or why_ended(pods) or "its pod ended without a word")
    if pods and _all_run(pods):
        return replace(said, state=RUNNING if word.state == RUNNING else STARTING, reason="")
    waits = why_pending(pods, answer.events, obj) if pods else too_few or "waits for other shards"
    return replace(said, state=REQUEUED if word.state else PENDING, reason=waits)


def _index(pod: Object) -> int | None:
    meta = pod["metadata"]
    text = (meta.get("labels") or {}).get(_INDEX_LABEL) or (meta.get("annotations") or {}).get(_INDEX_LABEL)
    return int(text) if text is not None else None


def _indexes(text: str | None) -> set[int]:
    """Read the job controller's list of indexes: ``0,2-4``."""
    found: set[int] = set()
    for piece in (text or "").split(","):
        first, _, last = piece.strip().partition("-")
        if first:
            found.update(range(int(first), int(last or first) + 1))
    return found


def _note(pods: Sequence[Object]) -> str:
    """What the newest pod left as its reason."""
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), reverse=True):
        for container in pod.get("status", {}).get("containerStatuses") or []:
            message = ((container.get("state") or {}).get("terminated") or {}).get("message")
            if message:
                return str(message)
    return ""


def _ended(obj: Object) -> float | None:
    text = (obj.get("status") or {}).get("completionTime")
    return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp() if text else None
