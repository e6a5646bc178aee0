"""What the set-up lines printed, from Slurm's log of the job: the words of the one that failed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from launcher.backends.slurm.files import slurm_folder
from launcher.backends.slurm.setup_lines import BEGIN, DONE, MARK
from launcher.failure import decode_exit
from launcher.logs.clean import clean
from launcher.run_folder import RunFolder

_MOST_BYTES = 256 * 1024
_LAST_LINES = 3
_LONGEST = 500
_SHELL_PREFIX = re.compile(r"^\S*(?:slurm_script|bash): (?:eval: )?(?:line [0-9]+: )?")
# Environment Modules 3 say so and return 0, wherever they are called.
_MODULE_ERROR = re.compile(r"ModuleCmd_\w+\.c\([0-9]+\):ERROR:[0-9]+: *(.*)")
# Others return 1; a site's wrapper around them may not. Below setup a line may go on after such words on purpose.
_LOAD_ERROR = re.compile(r"((?:ERROR:[0-9 ]*)?Unable to locate a modulefile.*|Lmod has detected the following error.*)")


def why_setup_failed(log: str, lines: Sequence[str], code: int, number: int) -> str:
    """Say which set-up line failed, and with which words.

    Args:
        log: what the script printed.
        lines: the set-up lines.
        code: exit code of the line.
        number: of the line, from 1; 0 where the shell could not read the lines at all.
    """
    words = _words_after_mark(log)
    if not 0 < number <= len(lines):
        what = f"the set-up lines are not what bash can run (exit code {code})"
    elif code == 0:
        what = f"set-up line '{_short(lines[number - 1])}' ended the batch script before anything was started"
    else:
        # Small codes have a meaning for the runtime, not for a site's commands.
        ended = decode_exit(code) if code > 128 else f"exit code {code}"
        what = f"set-up line '{_short(lines[number - 1])}' failed ({ended})"
    if "module: command not found" in words:
        words += "; where modules need an init file, source it below slurm.setup and load them there"
    return f"{what}: {words}" if words else what


def silent_module_error(log: str, modules: int) -> str:
    """An error that ``module`` printed though it returned 0; empty: none.

    Args:
        log: what the script printed.
        modules: how many of the set-up lines load one of the profile's modules; they are the first.
    """
    text = log.rpartition(DONE)[0].rpartition(BEGIN)[2]
    found = _MODULE_ERROR.search(text)
    for part in text.split(MARK)[1:]:
        number, _, said = part.partition("\n")
        if number.isdigit() and int(number) <= modules and not found:
            found = _LOAD_ERROR.search(said)
    return f"a module could not be loaded: {_short(found[1], _LONGEST)}" if found else ""


def read_log(run: RunFolder, job: str) -> str:
    """The end of what a job's batch script printed.

    Args:
        run: the run's folder.
        job: how Slurm names the job, or the member of an array.
    """
    try:
        with (slurm_folder(run) / f"{job}_0_log.out").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _MOST_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _words_after_mark(text: str) -> str:
    # Without a mark since the last start the shell could not read the lines: what it said of that follows the start.
    rest = text.rpartition(BEGIN)[2].rpartition(MARK)[2]
    lines = [_SHELL_PREFIX.sub("", clean(line)).strip() for line in rest.splitlines()[1:]]
    return _short("; ".join(dict.fromkeys([line for line in lines if line][-_LAST_LINES:])), _LONGEST)


def _short(text: str, most: int = 120) -> str:
    text = clean(text.strip())
    return text if len(text) <= most else text[: most - 1] + "…"
