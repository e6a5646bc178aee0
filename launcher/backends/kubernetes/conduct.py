"""The conductor of a pipeline, in a pod of its own: creates each step's object when the one before it has succeeded.

``python -m launcher.backends.kubernetes.conduct`` reads the plan and the objects that are mounted from the run's
ConfigMap. It may be started again at any moment: what is there already is not created twice. Its service account
needs no more than to create and get PyTorchJobs and Jobs. Exit code: 0 all done; 1 a step did not succeed; 2 the run's
folder belongs to another run.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from launcher.backends.base import CANCELLED, FAILED, SUCCEEDED
from launcher.backends.kubernetes.client import Client
from launcher.backends.kubernetes.ending_note import leave_note
from launcher.backends.kubernetes.labels import FOLDER_ANNOTATION, RUN_ID_LABEL, RUN_LABEL
from launcher.backends.kubernetes.refusals import AlreadyThere
from launcher.backends.kubernetes.template import ENV_PLAN, PLAN_FILE
from launcher.backends.kubernetes.volumes import FILES_MOUNT
from launcher.backends.kubernetes.words import job_state
from launcher.errors import BackendError
from launcher.patience import insist
from launcher.plan_text import load_plan
from launcher.run_folder import EXIT_BAD_REQUEST
from launcher.run_identity import FolderTaken, claim_folder

PATIENCE_S = 24 * 3600.0
"""How long a silent server is asked again: what it conducts may train for days."""
_POLL_S = 2.0


def main() -> int:
    """Conduct the steps that are mounted here."""
    files = Path(os.environ.get(ENV_PLAN, f"{FILES_MOUNT}/{PLAN_FILE}")).parent
    client, plan = Client({}), load_plan(files / PLAN_FILE)
    try:
        claim_folder(plan.folder, plan.run_id)
    except FolderTaken as error:
        _say(error.message)
        leave_note(error.message)
        return EXIT_BAD_REQUEST
    except OSError as error:
        # It writes nothing there itself: the pods of the steps look again, and say what is wrong.
        _say(f"the run's folder cannot be looked at: {error}")
    for step in plan.steps:
        path = files / f"object-{step.name}.yaml"
        if not path.is_file():
            continue
        try:
            reason = _conduct(client, yaml.safe_load(path.read_text(encoding="utf-8")))
        except BackendError as error:
            reason = error.message
        if reason:
            _say(f"{step.name}: {reason}; the steps after it are not started")
            leave_note(f"{step.name}: {reason}")
            return 1
        _say(f"{step.name}: done")
    return 0


def _conduct(client: Client, obj: dict[str, Any]) -> str:
    """Create an object and wait for its end; return why it did not succeed, or nothing."""
    kind, name = str(obj["kind"]), str(obj["metadata"]["name"])
    _say(f"creating {kind} {name}")
    insist(lambda: _create(client, obj), PATIENCE_S, _say)
    while True:
        time.sleep(_POLL_S)
        found = insist(lambda: client.get(kind, name), PATIENCE_S, _say)
        if found is None or _run_of(found) != _run_of(obj):
            return f"{kind} {name} was deleted by somebody else"
        state, reason = job_state(found)
        if state == SUCCEEDED:
            return ""
        if state in (FAILED, CANCELLED):
            return reason or f"{kind} {name} failed"


def _create(client: Client, obj: dict[str, Any]) -> None:
    try:
        client.create(obj)
    except AlreadyThere:
        found = client.get(str(obj["kind"]), str(obj["metadata"]["name"]))
        if found is not None and _run_of(found) != _run_of(obj):
            raise BackendError(f"{obj['kind']} '{obj['metadata']['name']}' is there already, of another run") from None


def _run_of(obj: dict[str, Any]) -> object:
    """What tells this run's objects from those of others with the same name."""
    meta = obj["metadata"]
    labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
    return labels.get(RUN_LABEL), labels.get(RUN_ID_LABEL), annotations.get(FOLDER_ANNOTATION)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
