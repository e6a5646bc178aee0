"""Set-up lines in bash itself: which failures end the run, which are a site's own business, and what gets through."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launcher.backends.slurm.files import slurm_folder
from launcher.backends.slurm.setup_lines import BEGIN, DONE, MARK, render_setup, setup_lines
from launcher.backends.slurm.setup_log import read_log, silent_module_error, why_setup_failed
from launcher.run_folder import RunFolder

SITE = """\
false
[ -n "$NOT_SET_ANYWHERE" ] && export A=1
grep -q nothing_like_this /etc/hostname
for one in 1 2; do false; done
export SITE=here
"""
LAST_FAILS = "export SITE=here\nfalse\n"
# As Lmod and conda do it: words on stderr, and the status of what went wrong inside.
FUNCTIONS = """\
module() { false; echo "Lmod has detected the following error: $2 unknown" >&2; return 1; }
conda() { echo "EnvironmentNameNotFound: Could not find conda environment: $2" >&2; return 1; }
fine() { false; return 0; }
export FUNCTIONS=here
"""


def run_lines(folder: Path, *lines: str, modules: tuple[str, ...] = ()) -> tuple[str, str]:
    """Run set-up lines as a batch script does; return what became of them and what was printed.

    What became of them is FAILED CODE LINE, REACHED with what the run would inherit, or the exit code alone.
    """
    for name, text in (("site.sh", SITE), ("last.sh", LAST_FAILS), ("functions.sh", FUNCTIONS)):
        (folder / name).write_text(text)
    (folder / "failed").write_text('#!/bin/sh\necho "echo FAILED $1 $2 >result; exit 9"\n')
    (folder / "failed").chmod(0o755)
    script = folder / "slurm_script"
    rendered = render_setup({"modules": list(modules), "setup": list(lines)}, "./failed")
    script.write_text("\n".join([*rendered, 'echo "REACHED $SITE$FUNCTIONS$VALUE" >result', "false", "true"]) + "\n")
    assert subprocess.run(["bash", "-n", script], capture_output=True).stderr == b""
    (folder / "result").unlink(missing_ok=True)
    done = subprocess.run(["bash", script], cwd=folder, capture_output=True, text=True, timeout=30)
    result = folder / "result"
    return (result.read_text().strip() if result.exists() else f"exit {done.returncode}"), done.stderr


@pytest.mark.parametrize(
    ("lines", "became"),
    [
        (["true", "false", "true"], "FAILED 1 2"),
        (["module load cuda/99.9"], "FAILED 127 1"),
        (["source functions.sh", "module load cuda/99.9"], "FAILED 1 2"),
        (["source functions.sh", "true\nconda activate llava"], "FAILED 1 3"),
        (["f() { return 3; }", "f"], "FAILED 3 2"),
        (["f() { exit 5; }", "f"], "FAILED 5 2"),
        (["source nowhere.sh"], "FAILED 1 1"),
        (["source last.sh"], "FAILED 1 1"),
        (["false | cat"], "FAILED 1 1"),
        (["cd /nowhere", "export VALUE=1"], "FAILED 1 1"),
        (["( exit 4 )"], "FAILED 4 1"),
        (["VALUE=$(false)"], "FAILED 1 1"),
        (["true && false"], "FAILED 1 1"),
        (["if true; then", "  false", "fi"], "FAILED 1 2"),
        (["for one in 1 2; do", "  true", "  false", "done"], "FAILED 1 3"),
        (["bash -c 'exit 175'"], "FAILED 175 1"),
        (["false &", "wait $!"], "FAILED 1 2"),
        (["set -e", "source site.sh"], "FAILED 1 2"),
        (["set -u", "echo $NOT_SET_ANYWHERE"], "FAILED 1 2"),
        ([": ${NOT_SET_ANYWHERE:?is needed}"], "FAILED 1 1"),
        (["true", "exit 0"], "FAILED 0 2"),
        (["true", "exit 6"], "FAILED 6 2"),
        (["source <(echo exit 7)"], "FAILED 7 1"),
        (["true", 'echo "unclosed'], "FAILED 2 0"),
        (["if true; then"], "FAILED 2 0"),
        (["}"], "FAILED 2 0"),
        (["export VALUE='it'\"'\"'s", "not closed"], "FAILED 2 0"),
        (["exec ./nowhere"], "exit 127"),
        (["kill -TERM $$"], "exit 143"),
    ],
)
def test_a_line_that_fails_ends_the_script_and_is_named(tmp_path: Path, lines: list[str], became: str) -> None:
    assert run_lines(tmp_path, *lines)[0] == became


@pytest.mark.parametrize(
    ("lines", "became"),
    [
        (["source site.sh"], "REACHED here"),
        (["source functions.sh", "fine"], "REACHED here"),
        (["source functions.sh", "module load cuda/99.9 || true"], "REACHED here"),
        (["source functions.sh", "module load a || module load b || export VALUE=none"], "REACHED herenone"),
        (["[ -f nowhere.sh ] && source nowhere.sh"], "REACHED"),
        (["if false; then", "  false", "else", "  export VALUE=else", "fi"], "REACHED else"),
        (["while false; do true; done", "! true"], "REACHED"),
        (["yes | head -1 >/dev/null"], "REACHED"),
        (["export VALUE=$(cat <<END", "two words", "END", ")"], "REACHED two words"),
        (["VALUE=1", "# a comment", "", "export VALUE # the last one \\"], "REACHED 1"),
        (["read -r VALUE <<'LLAVAJOB_SETUP'", "inner", "LLAVAJOB_SETUP"], "REACHED inner"),
        (["cat >/dev/null <<END", "never closed"], "REACHED"),
        (["trap 'rm -f nothing' EXIT", "export VALUE=own"], "REACHED own"),
        (["set -euo pipefail", "export VALUE=strict"], "REACHED strict"),
        (["set -E", "VALUE=$(false) || export VALUE=caught"], "REACHED caught"),
        (['export VALUE="it\'s"', "shopt -s extglob nullglob"], "REACHED it's"),
        ([""], "REACHED"),
    ],
)
def test_what_is_the_sites_own_business_goes_on(tmp_path: Path, lines: list[str], became: str) -> None:
    result, said = run_lines(tmp_path, *lines)
    assert result == became and DONE in said


def test_modules_come_first_and_the_sites_init_file_is_found(tmp_path: Path) -> None:
    assert run_lines(tmp_path, "export VALUE=1", modules=("gcc/12", "cuda"))[0] == "FAILED 127 1"
    (tmp_path / "lmod/init").mkdir(parents=True)
    (tmp_path / "lmod/init/bash").write_text('module() { VALUE="$VALUE$1 $2;"; }\n')
    script = tmp_path / "slurm_script"
    text = render_setup({"modules": ["gcc/12", "cuda 'x'"], "setup": ['echo "$VALUE"']}, "./failed")
    script.write_text("\n".join(text))
    environment = {"PATH": "/usr/bin:/bin", "LMOD_PKG": str(tmp_path / "lmod")}
    done = subprocess.run(["bash", script], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.stdout == "load gcc/12;load cuda 'x';\n"


def test_no_lines_nothing_in_the_script() -> None:
    assert render_setup({"modules": [], "setup": []}, "x") == []


def why(lines: list[str], code: int, number: int, log: str) -> str:
    return why_setup_failed(log, setup_lines({"modules": [], "setup": lines}), code, number)


def test_the_reason_has_the_line_and_its_own_words() -> None:
    before = f"{MARK}1\nearlier attempt\n{DONE}\nsteps\n{MARK}1\nLoading gcc\n{MARK}2\n"
    assert why(["a", "false"], 1, 2, before) == "set-up line 'false' failed (exit code 1)"
    missing = "/var/spool/slurmd/job00007/slurm_script: line 36: module: command not found\n"
    said = why(["a", "module load cuda/99.9"], 127, 2, before + missing)
    assert said.startswith("set-up line 'module load cuda/99.9' failed (exit code 127): module: command not found; ")
    assert "source it below slurm.setup" in said
    many = "".join(f"word {number}\n\n" for number in range(9)) + "\x1b]0;title\x07the \x1b[31mend\n"
    assert why(["b"], 2, 1, f"{MARK}1\n{many}") == ("set-up line 'b' failed (exit code 2): word 7; word 8; the end")
    assert why(["exit 0"], 0, 1, "").startswith("set-up line 'exit 0' ended the batch script before")
    odd = f"{MARK}1\nan earlier start\n{BEGIN}\nbash: eval: line 37: syntax error: unexpected end of file\n"
    assert why(["if"], 1, 0, odd) == (
        "the set-up lines are not what bash can run (exit code 1): syntax error: unexpected end of file"
    )


@pytest.mark.parametrize(
    ("line", "said", "error"),
    [
        (2, "ModuleCmd_Load.c(213):ERROR:105: Unable to locate a modulefile for 'cuda/99.9'\n", "cuda/99.9"),
        (9, "ModuleCmd_Load.c(213):ERROR:105: Unable to locate a modulefile for 'cuda/99.9'\n", "cuda/99.9"),
        (2, "ModuleCmd_Switch.c(172):ERROR:152: Module 'a' is currently not loaded\n", "not loaded"),
        (2, "ERROR: Unable to locate a modulefile for 'cuda/99.9'\n", "cuda/99.9"),
        (2, "Lmod has detected the following error: unknown: cuda/99.9\n", "cuda/99.9"),
        (
            9,
            "ERROR: Unable to locate a modulefile for 'cuda/99.9'\n",
            "",
        ),  # below setup it may be meant
        (2, "Loading cuda/12\n", ""),
    ],
)
def test_modules_that_say_an_error_and_return_0_are_heard(tmp_path: Path, line: int, said: str, error: str) -> None:
    run = RunFolder(tmp_path)
    slurm_folder(run).mkdir()
    log = slurm_folder(run) / "7_1_0_log.out"
    start = f"{BEGIN}\n{MARK}{line}\n"
    log.write_text(f"{start}{said}{DONE}\nModuleCmd_Load.c(1):ERROR:1: of the run itself\n")
    found = silent_module_error(read_log(run, "7_1"), 3)
    assert (error in found and found.startswith("a module could not be loaded: ")) if error else found == ""
    log.write_text(f"{start}{said}{DONE}\n{start}fine now\n{DONE}\n")
    assert silent_module_error(read_log(run, "7_1"), 3) == "", "an earlier start of the job is not this one"
