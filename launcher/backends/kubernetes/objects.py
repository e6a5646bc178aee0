"""What is sent for a plan: one ConfigMap, and one object for its step, or a conductor that starts its steps in turn."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from launcher.backends.kubernetes.bases import base_object
from launcher.backends.kubernetes.labels import (
    CONDUCTOR,
    FOLDER_ANNOTATION,
    MANAGED_LABEL,
    MANAGER,
    QUEUE_LABEL,
    RUN_ID_LABEL,
    RUN_LABEL,
    STEP_LABEL,
)
from launcher.backends.kubernetes.template import PLAN_FILE, fill_conductor_pod, fill_step_pod
from launcher.backends.kubernetes.text import write_objects
from launcher.plan import Plan, Step
from launcher.plan_text import render
from launcher.run_folder import EXIT_BAD_REQUEST, EXIT_FINAL

Object = dict[str, Any]

_CONDUCTOR_TRIES = 50
_JOB_KEYS = ("completionMode", "completions", "parallelism", "backoffLimit", "backoffLimitPerIndex",
             "maxFailedIndexes", "podFailurePolicy", "successPolicy")  # fmt: skip


def objects_to_send(plan: Plan) -> list[Object]:
    """What submitting sends, in order."""
    return [files(plan), conductor(plan) if has_conductor(plan) else step_object(plan, plan.steps[0])]


def has_conductor(plan: Plan) -> bool:
    """Whether a plan's steps are started one after the other, by a pod."""
    return len(plan.steps) > 1


def open_steps(plan: Plan) -> list[Step]:
    """Those steps that are to be started."""
    return [step for step in plan.steps if step.name not in plan.finished and (step.members or step.kind != "array")]


def object_name(plan: Plan, step: Step) -> str:
    """Name of a step's object: the run's, or the run's and the step's where there are several steps."""
    return f"{plan.run}-{step.name}" if has_conductor(plan) else plan.run


def object_file(step: Step) -> str:
    """Key below which the conductor finds a step's object among the run's files."""
    return f"object-{step.name}.yaml"


def step_object(plan: Plan, step: Step) -> Object:
    """What starts a step: a PyTorchJob for a gang, else a Job."""
    return gang(plan, step) if step.kind == "gang" else job(plan, step)


def gang(plan: Plan, step: Step) -> Object:
    """The PyTorchJob of a gang: one pod per node, and a pod that ends by a signal or asks for it is made anew."""
    base = base_object("training", plan.settings)
    spec = base["spec"]
    spec["nprocPerNode"] = str(step.processes_per_node)
    spec["runPolicy"] = {"cleanPodPolicy": "Running", **(spec.get("runPolicy") or {})}
    replicas = spec["pytorchReplicaSpecs"]
    roles = {"Master": 1, "Worker": step.nodes - 1}
    # Below one node there is no worker: the operator refuses none of them.
    spec["pytorchReplicaSpecs"] = {
        role: _replica(replicas.get(role, replicas["Master"]), count, plan, step)
        for role, count in roles.items()
        if count
    }
    return _head(base, object_name(plan, step), plan, step.name, queue=True)


def job(plan: Plan, step: Step) -> Object:
    """The Job of an array, Indexed with one member per index, or of a single task."""
    base = base_object("evaluation", plan.settings)
    array = step.kind == "array"
    if array:
        counts = {"completionMode": "Indexed", "completions": len(step.members)}
        counts |= {"parallelism": min(step.parallel, len(step.members)), "backoffLimitPerIndex": step.retries}
    else:
        counts = {"completions": 1, "parallelism": 1, "backoffLimit": step.retries}
    policy = _failure_policy("FailIndex" if array else "FailJob", [EXIT_BAD_REQUEST, EXIT_FINAL])
    template = _marked(base["spec"]["template"], plan, step.name)
    fill_step_pod(template, plan, step)
    base["spec"] = _job_spec(base["spec"], {**counts, "podFailurePolicy": policy}, template)
    return _head(base, object_name(plan, step), plan, step.name, queue=True)


def conductor(plan: Plan) -> Object:
    """The Job whose pod creates the object of each step when the one before has succeeded."""
    base = base_object("pipeline", plan.settings)
    own = {"completions": 1, "parallelism": 1, "backoffLimit": _CONDUCTOR_TRIES}
    template = _marked(base["spec"]["template"], plan, CONDUCTOR)
    fill_conductor_pod(template, plan)
    base["spec"] = _job_spec(
        base["spec"], {**own, "podFailurePolicy": _failure_policy("FailJob", [1, EXIT_BAD_REQUEST])}, template
    )
    return _head(base, plan.run, plan, CONDUCTOR, queue=False)


def files(plan: Plan) -> Object:
    """The ConfigMap of a run: its plan and, for a conductor, the object of every step that is to be started."""
    # In pods the launcher runs in the runtime's Python; where it runs here is nothing to them.
    data = {PLAN_FILE: render(replace(plan, launcher_python=plan.steps[0].command[0]))}
    if has_conductor(plan):
        data |= {object_file(step): write_objects([step_object(plan, step)]) for step in open_steps(plan)}
    base = {"apiVersion": "v1", "kind": "ConfigMap", "data": data}
    return _head(base, plan.run, plan, "", queue=False)


def _replica(base: Object, count: int, plan: Plan, step: Step) -> Object:
    template = _marked(copy.deepcopy(base["template"]), plan, step.name)
    fill_step_pod(template, plan, step)
    # The operator has a policy of its own and would warn of this one.
    template["spec"].pop("restartPolicy", None)
    return {**base, "replicas": count, "restartPolicy": "ExitCode", "template": template}


def _job_spec(base: Object, own: Object, template: Object) -> Object:
    template["spec"]["restartPolicy"] = "Never"
    kept = {key: value for key, value in base.items() if key not in (*_JOB_KEYS, "template")}
    return {**own, **kept, "template": template}


def _marked(template: Object, plan: Plan, step: str) -> Object:
    """A pod's template with its labels and annotations."""
    metadata = template.get("metadata") or {}
    return {**template, "metadata": {**metadata, **_marks(metadata, plan, step)}}


def _head(base: Object, name: str, plan: Plan, step: str, queue: bool) -> Object:
    """Give an object its name, labels and annotations."""
    marks = _marks(base.get("metadata") or {}, plan, step)
    if queue and plan.settings["queue"]:
        marks["labels"][QUEUE_LABEL] = plan.settings["queue"]
    place = {"namespace": plan.settings["namespace"]} if plan.settings["namespace"] else {}
    metadata = {**(base.get("metadata") or {}), "name": name, **place, **marks}
    first = {"apiVersion": base["apiVersion"], "kind": base["kind"], "metadata": metadata}
    return {**first, **{key: value for key, value in base.items() if key not in first}}


def _marks(base: Object, plan: Plan, step: str) -> dict[str, dict[str, str]]:
    """Labels and annotations: the base's, the profile's over them, llavajob's own over both."""
    own = {MANAGED_LABEL: MANAGER, RUN_LABEL: plan.run, **({STEP_LABEL: step} if step else {})}
    if plan.run_id:
        own[RUN_ID_LABEL] = plan.run_id
    labels = {**(base.get("labels") or {}), **plan.settings["labels"], **own}
    folder = {FOLDER_ANNOTATION: str(plan.folder)}
    return {
        "labels": labels,
        "annotations": {**(base.get("annotations") or {}), **plan.settings["annotations"], **folder},
    }


def _failure_policy(final: str, codes: list[int]) -> Object:
    """Pods that had to leave do not count; what would end the same again is not tried again."""
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": final, "onExitCodes": {"containerName": "llavajob", "operator": "In", "values": codes}},
        ]
    }
