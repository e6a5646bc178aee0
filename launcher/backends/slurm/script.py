"""The batch script of each step, made by submitit's own executor: what is shown is what is sent."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor, SlurmJobEnvironment

from launcher.backends.slurm.files import slurm_folder
from launcher.backends.slurm.header import header_value
from launcher.backends.slurm.settings import lead_s, option_value, parse_gpus, parse_gres, slurm_memory, slurm_time
from launcher.backends.slurm.setup_lines import render_setup
from launcher.errors import RequestError
from launcher.one_line import breaking_character, shell_line, shell_word
from launcher.plan import SHARD, Plan, Step
from launcher.run_folder import RunFolder

SlurmJobEnvironment.USR_SIG = "USR2"  # submitit would take another from the caller's environment
# Whoever has no handler yet must not die of the signal that comes before the time limit.
_WRAPPER = """sh -c 'trap "" USR2; exec "$@"' llavajob"""


class StepExecutor(SlurmExecutor):  # type: ignore[misc]
    """submitit's executor for one step. Makes the script on machines without Slurm, too."""

    def __init__(self, plan: Plan, step: Step) -> None:
        _check_paths(plan, step)
        super().__init__(slurm_folder(RunFolder(plan.folder)), python=f"{_WRAPPER} {shlex.quote(step.command[0])}")
        self.dependency = ""
        self.update_parameters(**_parameters(plan, step))
        if step.kind == "array":
            self.parameters["map_count"] = len(step.members)

    @classmethod
    def affinity(cls) -> int:
        return 2  # submitit looks for srun here, which only the machine that runs the job needs

    def script(self) -> str:
        """The text that sbatch gets."""
        text: str = self._make_submission_file_text(self._submitit_command_str, "")
        return text

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        """Dependencies stand on the command line, because they are not known before their jobs are sent."""
        extra = [f"--dependency=afterok:{self.dependency}"] if self.dependency else []
        return ["sbatch", *extra, str(submission_file_path)]


def render_scripts(plan: Plan) -> str:
    """The scripts of every step that is to be sent, in order; a single one as it is."""
    steps = [step for step in plan.steps if step.name not in plan.finished and (step.members or step.kind != "array")]
    if len(steps) == 1:
        return StepExecutor(plan, steps[0]).script()
    parts = []
    for number, step in enumerate(steps):
        after = f", sent with --dependency=afterok:JOB_OF_{steps[number - 1].name}" if number else ""
        parts.append(f"## {number + 1} of {len(steps)}: {step.name}{after}\n{StepExecutor(plan, step).script()}")
    return "\n".join(parts)


def _check_paths(plan: Plan, step: Step) -> None:
    """Refuse what cannot be a path of Slurm's: the run's folder goes into --output, where Slurm expands patterns.

    A backslash switches that expansion off, so that all jobs would share one log; submitit takes %j and %t in a
    folder's name for patterns as well.
    """
    folder = str(plan.folder)
    odd = breaking_character(folder) or next((f"a {sign!r}" for sign in ("%", "\\") if sign in folder), "")
    if odd:
        hint = "Set runs: in the profile, or LLAVAJOB_RUNS, to another folder."
        raise RequestError(f"the run's folder {folder!r} has {odd} in its path, which Slurm takes for more", hint)
    python = step.command[0]
    if breaking_character(python):
        text = f"the path of Python {python!r} has {breaking_character(python)} in it"
        raise RequestError(text, "Set python: in the profile to another one.")


def _parameters(plan: Plan, step: Step) -> dict[str, Any]:
    place = plan.settings
    given = ("partition", "account", "qos", "constraint", "comment", "exclude", "nodelist", "mail_user", "mail_type")
    cpus = max(1, place["cpus"] // step.per_node) if place["cpus"] else None
    return {
        "job_name": plan.run if len(plan.steps) == 1 else f"{plan.run}.{step.name}",
        **{name: header_value(place[name]) or None for name in given},
        "time": None,  # in Slurm's own notation below; submitit's counts minutes and has a default of five
        "nodes": 1 if step.kind == "array" else step.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "mem": slurm_memory(str(place["mem"]), step.per_node) if place["mem"] else None,
        **_gpus(place, step.gpus_per_node),
        "exclusive": True if place["exclusive"] and step.kind == "gang" else None,
        "wckey": header_value(place["wckey"]) or None,
        "signal_delay_s": lead_s(place, step.grace_s),
        "array_parallelism": step.parallel,
        "stderr_to_stdout": True,
        "setup": _before(plan, step),
        "srun_args": _srun(place, step, cpus),
        "teardown": _after(plan, step),
        "additional_parameters": _additional(place, step),
    }


def _gpus(place: dict[str, Any], count: int) -> dict[str, str | None]:
    if not count:
        return {}
    if place["gres"]:
        return {"gres": f"{parse_gres(place['gres'])[0]}:{count}"}
    kind = parse_gpus(str(place["gpus"]))[0] if place["gpus"] else ""
    return {"gpus_per_node": f"{kind}:{count}" if kind else str(count)}


def _additional(place: dict[str, Any], step: Step) -> dict[str, Any]:
    """Options that submitit has no word for. An evaluation is never run again behind anybody's back."""
    options: dict[str, Any] = {"requeue" if step.retries else "no-requeue": True, "kill-on-invalid-dep": "yes"}
    if place["reservation"]:
        options["reservation"] = header_value(place["reservation"])
    if place["time"]:
        options["time"] = slurm_time(str(place["time"]))
    for name, value in place["extra"].items():
        given = option_value(value)
        if given is not None:
            options[name.replace("_", "-")] = header_value(given) if isinstance(given, str) else given
    return options


def _srun(place: dict[str, Any], step: Step, cpus: int | None) -> list[str]:
    # Since 22.05 srun no longer takes the CPUs of a task from the job.
    each = [f"--cpus-per-task={cpus}"] if cpus else []
    # A node may be writing the model long after the others are done: no limit to that (0), whatever the site's is.
    # What the batch script has reaches the processes, also where sbatch was told to hand on less.
    return ["--export=ALL", "--kill-on-bad-exit=1", "--wait=0", *each, *shlex.split(place["container"])]


def _before(plan: Plan, step: Step) -> list[str]:
    """Lines before srun: the site's own, then the head of the loop of attempts."""
    code = shlex.quote(str(plan.code)) if plan.code else ""
    path = [f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}"] if code else []
    begin = f'while attempt=$({_call(plan, step, "begin")}) && eval "$attempt"; do'
    setup = render_setup(plan.settings, _call(plan, step, "setup"))
    return [*setup, *path, "", *_explained(step), begin]


def _explained(step: Step) -> list[str]:
    what = {"gang": "each node", "array": "each member, with the number of its shard,"}.get(step.kind, "the task")
    # A value of several lines must not leave its comment: the rest of it would be run.
    variables = [f"#   {shell_word(name)}={shell_word(value)}" for name, value in sorted(step.environment.items())]
    return [
        f"# {what} runs: {shell_line(step.command).replace(shlex.quote(SHARD), SHARD)}",
        *(["# with", *variables] if variables else []),
        "# One turn is one attempt: begin numbers it and chooses address and port, settle says what follows.",
    ]


def _after(plan: Plan, step: Step) -> list[str]:
    return [f'eval "$({_call(plan, step, "settle")} "$?")"', "done", "exit 1", ""]


def _call(plan: Plan, step: Step, what: str) -> str:
    # With a container the node itself has no more than what can be seen from here.
    python = plan.launcher_python if plan.settings["container"] else step.command[0]
    return f"{shlex.quote(python)} -m launcher.backends.slurm.batch {what} {shlex.quote(str(plan.folder))} {step.name}"
