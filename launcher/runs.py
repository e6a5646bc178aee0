"""What each command does with runs, in plain functions: prepare, submit, resume, cancel."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher import console, paths
from launcher.asking import ask
from launcher.backends.base import ENDED, SUCCEEDED, UNKNOWN, BackendState, get_backend
from launcher.code_changes import keep_changes
from launcher.ending import next_attempt
from launcher.errors import BackendError, LauncherError, RequestError, SubmissionUnknown, Unreadable
from launcher.exits import missing_shards
from launcher.going_on import has_started
from launcher.inputs import Missing, drop_unseen_caches, find_doubts, find_missing, from_here, make_absolute
from launcher.origin import describe_origin
from launcher.plan import Plan, Step
from launcher.planning import make_plan
from launcher.profiles import Profile, find_profile, override_place, runs_roots
from launcher.recipe import Override, Recipe, Stage, apply_overrides, load, stages_of
from launcher.references import Names
from launcher.run_folder import RunFolder, read_json, write_aside
from launcher.runtime_check import ask_runtime_of
from launcher.secret_refusal import refuse_clear_secrets
from launcher.snapshot import take_snapshot
from launcher.store import Run, all_runs, check_name, find_run, new_name, new_run_id, now, original_of, save
from launcher.submission import draft, ending_cleanly, remove, resubmission
from launcher.tree import Tree
from launcher.user import owner_name
from launcher.yaml_text import dump

_MOST_DRAWS = 100


@dataclass
class Prepared:
    """Everything about a run that is known before it is sent."""

    name: str
    folder: RunFolder
    recipe: Recipe
    profile: Profile
    stages: list[Stage]
    plan: Plan
    rendered: str
    missing: list[Missing]
    lacking: list[str]
    """What the place lacks, in words."""
    doubts: list[str]
    """What the run's processes may not see; it may be sent all the same."""

    def require_inputs(self) -> None:
        """Raise RequestError naming every missing input and how to get it; asks the Python that is to run the jobs."""
        lacking = self.lacking or ask_runtime_of(self.plan)
        if not self.missing and not lacking:
            return
        lines = [f"{m.origin}: {m.key}: {m.path} {m.why}\n    get it: {m.cure}" for m in self.missing]
        lines += lacking
        raise RequestError(f"{self.recipe.name} cannot start yet:\n" + "\n".join(f"  {line}" for line in lines))

    def say_doubts(self) -> None:
        """Tell what will probably fail and cannot be known for certain."""
        for text in self.doubts:
            console.say(f"Note: {text}")


def prepare(reference: str, on: str | None, name: str | None, overrides: Sequence[Override]) -> Prepared:
    """Resolve, check, plan and render a recipe; nothing is written.

    Raises:
        RequestError: anything that a person can mend, all problems at once.
    """
    if name is not None:
        check_name(name)
    profile = find_profile(on)
    recipe = load(reference)
    apply_overrides(recipe, override_place(profile, overrides))
    run = name or _free_name(profile.runs, recipe.name)
    return _prepare(recipe, profile, RunFolder(profile.runs / run), "", paths.current())


def _free_name(root: Path, recipe: str) -> str:
    """Draw names until one is free. The last one stands: whether it is free is checked again when it is taken."""
    for _ in range(_MOST_DRAWS):
        name = new_name(recipe)
        if not os.path.lexists(root / name):
            break
    return name


def _prepare(recipe: Recipe, profile: Profile, folder: RunFolder, run_id: str, base: Path) -> Prepared:
    there = profile.jobs_runs / folder.name
    fixed = {"run.dir": str(there), "run.name": folder.name, "runs.root": str(profile.jobs_runs)}
    names = Names(fixed, _latest_finished)
    stages = stages_of(recipe, profile.values, there, names)
    make_absolute(stages, base)
    refuse_clear_secrets(recipe, stages, profile, folder)
    backend = get_backend(profile.backend)
    reach = backend.reach(profile)
    drop_unseen_caches(stages, reach)
    plan = go_on(make_plan(folder.name, run_id, there, profile, stages), folder)
    missing, lacking = find_missing(stages, there, backend.sees_files, reach), backend.check(plan)
    doubts = find_doubts(stages, there, reach)
    return Prepared(folder.name, folder, recipe, profile, stages, plan, backend.render(plan), missing, lacking, doubts)


def go_on(plan: Plan, folder: RunFolder) -> Plan:
    """Leave out of a resumed run's plan what is done: whole steps, and the shards of an array that have answered."""
    record = read_json(folder.record)
    if record is None:
        return plan
    states = state_of(Run(folder, record)).steps
    finished = tuple(step.name for step in states if step.state == SUCCEEDED)
    steps = [replace(step, members=missing_shards(folder.stage(step.stage), step)) for step in plan.steps]
    return replace(plan, finished=finished, steps=tuple(_numbered(steps, folder)))


def _numbered(steps: Sequence[Step], folder: RunFolder) -> Iterator[Step]:
    """Give every step the number of its next attempt; a merge belongs to the attempt of its shards."""
    before: Step | None = None
    for step in steps:
        attempt = next_attempt(step, folder.stage(step.stage))
        if step.kind == "merge" and before is not None and before.members:
            attempt = before.attempt
        before = replace(step, attempt=attempt)
        yield before


def submit(prepared: Prepared) -> tuple[Run, list[str]]:
    """Store a prepared run and send it; return it with its job ids.

    This ends with a run that can be listed, cancelled and resumed, or with nothing of it, whatever breaks it off.
    """
    prepared.require_inputs()
    prepared.say_doubts()
    prepared = _with_identity(prepared)
    # Asked before the folder is made: where the place does not answer, there is nothing to clean up.
    where = get_backend(prepared.profile.backend).where(prepared.plan)
    record = {
        "format": 1,
        "name": prepared.name,
        "run_id": prepared.plan.run_id,
        "run_dir": str(prepared.folder.root),
        "created": now(),
        "recipe": prepared.recipe.name,
        "kind": prepared.recipe.kind,
        "source": prepared.recipe.source,
        "backend": prepared.profile.backend,
        "profile": prepared.profile.name,
        "where": where,
        **describe_origin(),
        "submissions": [],
    }
    with draft(prepared.profile.runs, prepared.name, prepared.profile.private_runs) as made:
        try:
            with ending_cleanly():
                kept_out = keep_changes(Path.cwd(), made.folder.code_diff)
                if kept_out:
                    record["kept_out"] = kept_out
                _write(Run(made.folder, record), prepared)
                run = Run(made.place(), record)
        except OSError as error:
            hint = "Make room there, or set LLAVAJOB_RUNS to another folder."
            text = f"cannot write the run's folder {prepared.folder.root}: {error.strerror}"
            raise LauncherError(text, hint) from None
        try:
            return _send(run, prepared)
        except SubmissionUnknown:
            # The scheduler may have it: the folder is what it is found and ended by.
            raise
        except (BackendError, OSError) as error:
            # The scheduler has nothing of it: there is no run.
            if not remove(run.folder):
                raise SubmissionUnknown(f"{run.name} has a supervisor already", _how_to_look(run.name, "")) from error
            if isinstance(error, OSError):
                text = f"cannot write below {run.folder.root}: {error.strerror}; nothing of the run is left"
                raise LauncherError(text, "Make room there, or set LLAVAJOB_RUNS to another folder.") from None
            raise


def _how_to_look(name: str, hint: str) -> str:
    commands = f"Look whether it is there: llavajob status {name}. To end what may be there: llavajob cancel {name}"
    return f"{hint}\n{commands}" if hint else commands


def _with_identity(prepared: Prepared) -> Prepared:
    """Give a run its identity: only what is submitted has one, so that a dry run prints the same text each time."""
    plan = replace(prepared.plan, run_id=new_run_id())
    return replace(prepared, plan=plan, rendered=get_backend(plan.backend).render(plan))


def _write(run: Run, prepared: Prepared) -> None:
    """Write all that a submission sends, the record last."""
    attempt = max(run.folder.attempt_numbers(), default=-1) + 1
    for path, values in prepared.plan.configs.items():
        write_aside(run.folder.root / Path(path).relative_to(prepared.plan.folder), dump(values))
    suffix = get_backend(prepared.profile.backend).suffix
    write_aside(run.folder.rendered(attempt, suffix), prepared.rendered)
    run.record["recipe_tree"] = prepared.recipe.tree.values
    run.record["origins"] = {".".join(key): origin for key, origin in prepared.recipe.tree.origins.items() if key}
    if prepared.plan.code is not None:
        run.record["code"] = take_snapshot(run.folder.code)
    run.record["there"] = str(prepared.plan.folder)
    run.record["place"] = [[".".join(o.key), o.text, o.origin] for o in prepared.profile.overrides]
    run.record["values"] = {stage.name: stage.tree.values for stage in prepared.stages}
    run.record["submissions"].append({"time": now(), "attempt": attempt, "job_ids": []})
    save(run)


def _send(run: Run, prepared: Prepared) -> tuple[Run, list[str]]:
    entry: dict[str, Any] = run.record["submissions"][-1]
    try:
        entry["job_ids"] = get_backend(prepared.profile.backend).submit(run, prepared.plan)
    except SubmissionUnknown as error:
        raise SubmissionUnknown(error.message, _how_to_look(run.name, error.hint)) from error
    except KeyboardInterrupt:
        text = f"interrupted while {run.name} was being sent; it may have been"
        raise SubmissionUnknown(text, _how_to_look(run.name, "")) from None
    try:
        save(run)
    except OSError as error:
        # The run goes on and is found without the job ids, which its backend keeps, too.
        console.say(f"{run.name} was sent, but its record could not be written: {error.strerror}")
    return run, entry["job_ids"]


def state_of(run: Run) -> BackendState:
    """Ask a run's backend where it is; a run that cannot be understood is unknown."""
    return ask([run])[0]


def _latest_finished(recipe: str) -> str | None:
    """Folder, as its processes saw it, of the newest succeeded run of a recipe, for ``${latest:RECIPE}``."""
    runs = [run for run in all_runs(runs_roots()) if run.record.get("recipe") == recipe]
    found = next((run for run in reversed(runs) if state_of(run).state == SUCCEEDED), None)
    return None if found is None else str(found.record.get("there", found.folder.root))


def resume(name: str | None, overrides: Sequence[Override]) -> tuple[Run, list[str]]:
    """Go on with a run that ended early: a new attempt of the same run.

    Raises:
        RequestError: it is still active, it succeeded, or there is nothing to go on from.
    """
    run = find_run(runs_roots(), name)
    _require_owned(run)
    _require_resumable(run, state_of(run))
    with resubmission(run):
        # Another command may have resumed it between the look and the lock.
        run.record = read_json(run.folder.record) or run.record
        _require_resumable(run, state_of(run))
        return _resume(run, overrides)


def _resume(run: Run, overrides: Sequence[Override]) -> tuple[Run, list[str]]:
    recipe = _stored_recipe(run)
    profile = find_profile(str(run.record["profile"]))
    profile.runs = run.folder.root.parent
    before = [Override(tuple(key.split(".")), text, origin) for key, text, origin in run.record.get("place", ())]
    apply_overrides(recipe, override_place(profile, [*before, *map(from_here, overrides)]))
    if original_of(run) is not None:
        # Two runs must not share an identity: a copy that is gone on with is a run of its own.
        run.record["run_id"] = new_run_id()
    prepared = _prepare(recipe, profile, run.folder, run.run_id, Path(run.record["folder"]))
    prepared.require_inputs()
    run.record["run_dir"] = str(run.folder.root)
    run.record["where"] = get_backend(prepared.profile.backend).where(prepared.plan)
    prepared.say_doubts()
    run.folder.cancel_request.unlink(missing_ok=True)
    _write(run, prepared)
    return _send(run, prepared)


def _require_resumable(run: Run, state: BackendState) -> None:
    if state.state == SUCCEEDED:
        raise RequestError(f"{run.name} has succeeded; there is nothing to resume", f"Its results: {run.folder.root}")
    if state.state == UNKNOWN:
        # What cannot be seen from here may still run.
        raise RequestError(f"{run.name} is UNKNOWN: {state.reason}", _how_to_resume_unknown(run))
    if state.state not in ENDED:
        cure = f"Follow it: llavajob logs {run.name} --follow. To start it again: llavajob cancel {run.name} first."
        raise RequestError(f"{run.name} is {state.state}; only a run that has ended can be resumed", cure)
    if run.record["kind"] == "train" and has_started(run.folder) and not run.folder.checkpoint_steps():
        command = run.record.get("command") or f"llavajob submit {run.record['recipe']}"
        cure = f"Start it again as another run; this one was started by: {command}"
        raise RequestError(f"{run.name} has no complete checkpoint to resume from", cure)


def _how_to_resume_unknown(run: Run) -> str:
    hint = "Resume it from where its state can be seen."
    if run.record["backend"] != "local":
        return hint
    return f'{hint} If that machine is gone for good, set "state" to "FAILED" in {run.folder.state} and try again.'


def _require_owned(run: Run) -> None:
    """Raise RequestError where a run is another user's and cannot be written to."""
    if os.access(run.folder.root, os.W_OK):
        return
    owner = owner_name(run.folder.root)
    raise RequestError(f"{run.name} belongs to {owner}: {run.folder.root} cannot be written to", f"Ask {owner}.")


def _stored_recipe(run: Run) -> Recipe:
    origins = {tuple(key.split(".")): origin for key, origin in run.record["origins"].items()}
    tree = Tree(run.record["recipe_tree"], origins)
    return Recipe(str(run.record["recipe"]), str(run.record["kind"]), tree, str(run.record["source"]))


def require_active(run: Run) -> None:
    """Raise RequestError when a run has ended already.

    A run whose supervisor died counts as failed, yet may have left processes to end: that one may be cancelled.
    """
    state = state_of(run)
    if state.state in ENDED and state.ended is not None:
        cure = "" if state.state == SUCCEEDED else f"To go on with it: llavajob resume {run.name}"
        raise RequestError(f"{run.name} has ended already ({state.state})", cure)


def cancel(run: Run) -> BackendState:
    """End a run that has not ended.

    Raises:
        RequestError: it is another user's, or a copy whose jobs are those of the run that was copied.
        Unreadable: its record does not say where it is.
    """
    if run.odd:
        raise Unreadable(f"{run.name} cannot be ended: {run.odd}", f"Its folder: {run.folder.root}")
    _require_owned(run)
    original = original_of(run)
    if original is not None and run.record["backend"] != "local":  # a local run knows its own processes
        hint = f"To end that one: llavajob cancel {original.name}"
        raise RequestError(f"{run.folder.root} is a copy of the run at {original}: nothing of its own runs", hint)
    return get_backend(str(run.record["backend"])).cancel(run)
