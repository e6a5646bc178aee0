"""The command line: parse, call, print, and the one place where errors are caught.

Heavy modules are imported inside the commands that use them, so that ``--help`` stays quick.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core

from launcher import __version__, console
from launcher.errors import LauncherError, RequestError

if TYPE_CHECKING:
    from launcher.recipe import Override
    from launcher.store import Run

EXIT_STOPPED, EXIT_CLOSED_PIPE = 128 + signal.SIGINT, 128 + signal.SIGPIPE


class Commands(typer.core.TyperGroup):
    """The commands, with two ends that are no errors: Ctrl-C, and a reader that has seen enough (``| head``)."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(EXIT_STOPPED)
        except BrokenPipeError:
            console.close()
            sys.exit(EXIT_CLOSED_PIPE)


app = typer.Typer(
    name="llavajob",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Launch LLaVA training and evaluation, follow it, lose nothing. First: llavajob submit quickstart --follow",
)

RecipeArgument = Annotated[str, typer.Argument(help="Shipped recipe or path to a YAML file.", metavar="RECIPE")]
RunArgument = Annotated[
    str | None, typer.Argument(help="Run, or any unique prefix of its name; left out: the latest.", metavar="[RUN]")
]
On = Annotated[str | None, typer.Option("--on", help="Profile: where to run.", metavar="PROFILE")]
Nodes = Annotated[int | None, typer.Option("--nodes", help="Machines (local: groups of processes).", metavar="N")]
Gpus = Annotated[int | None, typer.Option("--gpus-per-node", help="GPUs on each node; 0: CPU.", metavar="N")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run; left out: a fresh one.", metavar="NAME")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a recipe's value: train.epochs=2. Repeatable.", metavar="KEY=VALUE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Stay until the run ends; Ctrl-C leaves it running.")]


def _version(wanted: bool) -> None:
    if wanted:
        console.data(f"llavajob {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _overrides(nodes: int | None, gpus: int | None, sets: list[str] | None) -> list[Override]:
    from launcher.recipe import Override
    from launcher.secret_looks import mask

    given = [("nodes", nodes, "--nodes"), ("gpus_per_node", gpus, "--gpus-per-node")]
    found = [Override(("resources", key), str(value), flag) for key, value, flag in given if value is not None]
    for text in sets or []:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RequestError(f"--set {mask(text)!r} is not KEY=VALUE", "For example: --set train.epochs=2")
        found.append(Override(tuple(key.strip().split(".")), value, f"--set {key.strip()}"))
    return found


@app.command()
def submit(
    recipe: RecipeArgument,
    on: On = None,
    nodes: Nodes = None,
    gpus_per_node: Gpus = None,
    name: Name = None,
    sets: Sets = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent; write nothing.")] = False,
    follow: Follow = False,
    as_json: Json = False,
) -> None:
    """Submit a recipe as a new run."""
    from launcher import runs

    prepared = runs.prepare(recipe, on, name, _overrides(nodes, gpus_per_node, sets))
    if dry_run:
        _show_rendered(prepared)
        return
    run, job_ids = runs.submit(prepared)
    _report_submitted(run, job_ids, as_json)
    if follow:
        _leave(_follow(run, as_json))


@app.command()
def render(
    recipe: RecipeArgument,
    on: On = None,
    nodes: Nodes = None,
    gpus_per_node: Gpus = None,
    name: Name = None,
    sets: Sets = None,
) -> None:
    """Print exactly what submit would send (the same as submit --dry-run)."""
    from launcher import runs

    _show_rendered(runs.prepare(recipe, on, name, _overrides(nodes, gpus_per_node, sets)))


def _show_rendered(prepared: Any) -> None:
    from launcher.explain import plan_text

    console.data_as_sent(prepared.rendered)
    console.say(plan_text(prepared))


def _report_submitted(run: Run, job_ids: list[str], as_json: bool) -> None:
    if as_json:
        from launcher.runs import state_of

        backend, state = run.record["backend"], state_of(run).state
        console.data_json(
            {"run": run.name, "dir": str(run.folder.root), "backend": backend, "job_ids": job_ids, "state": state}
        )
        return
    console.data(run.name)
    console.say(f"Submitted to {run.record['backend']}, folder {run.folder.root}")
    console.say(f"Follow it: llavajob logs {run.name} --follow    State: llavajob status {run.name}")


def _follow(run: Run, quiet_stdout: bool = False) -> int:
    from launcher.watch import watch

    return watch(run, quiet_stdout)


def _leave(code: int) -> NoReturn:
    raise typer.Exit(code)


def _find(name: str | None) -> Run:
    from launcher.profiles import runs_roots
    from launcher.store import find_run

    return find_run(runs_roots(), name)


@app.command("list")
def list_runs(
    state: Annotated[str | None, typer.Option("--state", help="Only runs in this state.", metavar="S")] = None,
    as_json: Json = False,
) -> None:
    """List runs, oldest first."""
    from launcher.backends.base import STATES
    from launcher.errors import nearest
    from launcher.explain import list_text
    from launcher.listing import list_all
    from launcher.profiles import runs_roots

    wanted = state.upper() if state else None
    if wanted and wanted not in STATES:
        raise RequestError(f"no state named '{state}'{nearest(wanted, STATES)}", f"States: {', '.join(STATES)}")
    found = [s for s in list_all(runs_roots()) if wanted in (None, s.state)]
    if as_json:
        console.data_json_list([s.as_json() for s in found])
    elif found:
        console.data(list_text(found))
    else:
        console.say("No runs" + (f" in state {wanted}." if wanted else " yet. Start one: llavajob submit quickstart"))


@app.command()
def status(run: RunArgument = None, as_json: Json = False) -> None:
    """Show where a run is, and why it failed."""
    from launcher.explain import status_text
    from launcher.status import statuses

    found = statuses([_find(run)])[0]
    if as_json:
        console.data_json(found.as_json())
    else:
        console.data(status_text(found))


@app.command()
def logs(
    run: RunArgument = None,
    follow: Follow = False,
    rank: Annotated[list[int] | None, typer.Option("--rank", help="Only this rank. Repeatable.", metavar="R")] = None,
    node: Annotated[list[int] | None, typer.Option("--node", help="Only this node. Repeatable.", metavar="N")] = None,
    shard: Annotated[
        list[int] | None, typer.Option("--shard", help="Only this shard of an evaluation. Repeatable.", metavar="S")
    ] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", help="Only this attempt.", metavar="A")] = None,
    stage: Annotated[list[str] | None, typer.Option("--stage", help="Only this stage of a pipeline.")] = None,
    tail: Annotated[
        int | None, typer.Option("--tail", help="Only the last N lines.", metavar="N", min=0, max=10**9)
    ] = None,
    grep: Annotated[str | None, typer.Option("--grep", help="Only lines that match.", metavar="REGEX")] = None,
    since: Annotated[str | None, typer.Option("--since", help="Only since: 90s, 10m, 2h, 1d.", metavar="10m")] = None,
) -> None:
    """Print the logs of all ranks, merged by time; equal lines are folded."""
    from launcher.watch import LogChoice, show_logs

    choice = LogChoice(rank or [], node or [], attempt, stage or [], tail, grep, since, shard or [])
    _leave(show_logs(_find(run), choice, follow))


@app.command()
def cancel(names: Annotated[list[str], typer.Argument(help="Runs to end.", metavar="RUN...")]) -> None:
    """End runs: state saved, every process gone."""
    from launcher import runs
    from launcher.backends.base import ENDED
    from launcher.plain_text import one_line

    found = {run.folder.root: run for run in map(_find, names)}
    refused: list[LauncherError] = []
    for run in found.values():
        try:
            runs.require_active(run)
            console.say(f"Ending {run.name}: saving the state first ...")
            state = runs.cancel(run)
            left = "; no process is left" if state.state in ENDED else ""
            console.say(f"{run.name}: {state.state}, {one_line(state.reason)}{left}")
        except LauncherError as error:
            # One run that cannot be ended must not keep the others going.
            refused.append(error)
    for reason in refused[:-1]:
        console.fail(reason.message, reason.hint)
    if refused:
        raise refused[-1]


@app.command()
def resume(
    run: RunArgument = None,
    nodes: Nodes = None,
    gpus_per_node: Gpus = None,
    sets: Sets = None,
    follow: Follow = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that ended early, from its last checkpoint, as a new attempt."""
    from launcher import runs

    resumed, job_ids = runs.resume(run, _overrides(nodes, gpus_per_node, sets))
    _report_submitted(resumed, job_ids, as_json)
    if follow:
        _leave(_follow(resumed, as_json))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Recipe to explain.", metavar="[NAME]")] = None,
    as_json: Json = False,
) -> None:
    """List what can be submitted, or explain one recipe with its values."""
    from launcher.recipe_text import recipe_rows, recipe_text, recipes_text

    if name is None:
        rows = recipe_rows()
        console.data_json(rows) if as_json else console.data(recipes_text(rows))
        return
    from launcher.recipe import explain, load

    found = load(name)
    if as_json:
        keys = ("key", "value", "origin", "doc")
        console.data_json({"name": found.name, "keys": [dict(zip(keys, row, strict=True)) for row in explain(found)]})
    else:
        console.data(recipe_text(found))


@app.command()
def profiles(as_json: Json = False) -> None:
    """List the places that runs can go to."""
    from launcher.explain import columns
    from launcher.profiles import as_rows

    rows = as_rows()
    if as_json:
        console.data_json(rows)
        return
    table = [("PROFILE", "BACKEND", "RUNS", "FROM")]
    table += [(r["name"] + " *" * r["default"], r["backend"], r["runs"], r["source"]) for r in rows]
    console.data(columns(table))


@app.command()
def doctor(on: On = None, as_json: Json = False) -> None:
    """Check a profile against its place: what is there, what is missing, what to do."""
    from dataclasses import asdict

    from launcher.backends.base import get_backend
    from launcher.doctor import examine_profile, examine_runs_folder
    from launcher.profiles import find_profile

    profile, found = find_profile(on), []
    for look in (examine_profile, examine_runs_folder, get_backend(profile.backend).examine):
        for finding in look(profile):
            found.append(finding)
            if not as_json:
                console.data(finding.line())
    if as_json:
        console.data_json([asdict(finding) for finding in found])
    _leave(int(any(finding.good is False for finding in found)))


def main() -> None:
    """Entry point of the ``llavajob`` command."""
    console.prepare()
    try:
        app()
    except LauncherError as error:
        console.fail(error.message, error.hint)
        sys.exit(error.exit_code)
    except OSError as error:
        # A full disk, a folder that was taken away: nothing that a traceback would explain better.
        where = f" ({error.filename})" if error.filename else ""
        console.fail(f"{error.strerror or error}{where}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(EXIT_STOPPED)
    except Exception as error:
        from launcher import unforeseen

        console.fail(*unforeseen.describe(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
