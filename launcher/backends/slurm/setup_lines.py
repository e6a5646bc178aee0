"""The site's own lines before srun: modules and ``setup:``, run so that one that fails ends the run and is named.

They run in the batch script's own shell, because what they export is for the run. ``set -e`` would be too strict for
them: scripts of real sites are full of commands that fail without harm. Each command of the lines themselves counts
(an ERR trap, which functions do not inherit); what goes on inside of functions and sourced files is theirs, and only
the status that they return counts. The log tells the lines apart by the marks below.
"""

from __future__ import annotations

import shlex
from typing import Any

MARK = "llavajob: set-up line "
"""Before each line's number in Slurm's log of the job."""
BEGIN = "llavajob: set-up begins"
DONE = "llavajob: set-up done"
_END = "LLAVAJOB_SETUP"
# A batch script is not run by a login shell, which would have read one of these.
_INIT_FILES = (
    '"$LMOD_PKG/init/bash"', '"$MODULESHOME/init/bash"', "/etc/profile.d/lmod.sh", "/etc/profile.d/z00_lmod.sh",
    "/etc/profile.d/modules.sh", "/usr/share/lmod/lmod/init/bash", "/usr/share/Modules/init/bash",
    "/usr/share/modules/init/bash",
)  # fmt: skip


def setup_lines(place: dict[str, Any]) -> list[str]:
    """The lines that a profile has run before anything else: its modules, then its own."""
    modules = [f"module load {shlex.quote(name)}" for name in place["modules"]]
    return [line for text in (*modules, *place["setup"]) for line in text.split("\n")]


def render_setup(place: dict[str, Any], failed: str) -> list[str]:
    """Return the part of a batch script that runs the set-up lines; empty without any.

    Args:
        place: what the profile says to Slurm, complete.
        failed: a command that takes an exit code and a line's number, writes down that the set-up failed, and prints
            the end of the script.
    """
    lines = setup_lines(place)
    if not lines:
        return []
    end = _END
    while end in lines:
        end += "_"
    return [
        '# Set-up lines: one that fails ends the run; one followed by "|| true" does not.',
        *(_find_module_command() if place["modules"] else []),
        f"IFS= read -rd '' llavajob_setup <<'{end}'",
        *lines,
        end,
        *_functions(failed, len(lines)),
        "[[ $llavajob_setup ]] || llavajob_setup_failed 1 0  # no room for a temporary file",
        f'exec {{llavajob_log}}>&2; echo "{BEGIN}" >&2; llavajob_depth=${{#BASH_SOURCE[@]}}',
        "trap 'llavajob_after_error $? $((LINENO - llavajob_base)) ${#BASH_SOURCE[@]}' ERR",
        "trap 'llavajob_before_exit $?' EXIT",
        "trap 'llavajob_ended=1; exit 143' TERM",
        "set -o pipefail",
        # The colon: a last line such as [ -f FILE ] && source FILE may be false. In one line, for the line numbers.
        "llavajob_base=$LINENO; trap 'llavajob_before_line $((LINENO - llavajob_base))' DEBUG; "
        "eval $'\\n'\"$llavajob_setup\"$'\\n\\n:'; trap - DEBUG ERR",
        # A set -e of the site's would end the script before it can say how srun ended.
        "set +eu +o pipefail",
        "[[ $(trap -p EXIT) != *llavajob_before_exit* ]] || trap - EXIT",
        "[[ $(trap -p TERM) != *llavajob_ended* ]] || trap - TERM",
        f'echo "{DONE}" >&"$llavajob_log"; exec {{llavajob_log}}>&-',
    ]


def _find_module_command() -> list[str]:
    return [
        f"type module >/dev/null 2>&1 || for llavajob_init in {' '.join(_INIT_FILES)}; do",
        '  if [ -r "$llavajob_init" ]; then source "$llavajob_init" && break; fi',
        "done",
    ]


def _functions(failed: str, count: int) -> list[str]:
    return [
        "llavajob_setup_failed() {  # EXIT_CODE LINE",
        "  trap - DEBUG ERR EXIT TERM; set +eu",
        f'  eval "$({failed} "$1" "$2")"',
        '  echo "llavajob: the set-up failed (exit code $1), and that could not be written down" >&2; exit 1',
        "}",
        "llavajob_before_line() {  # LINE",
        f'  if (( $1 > 0 && $1 <= {count} )) && [[ $1 != "${{llavajob_line-}}" ]]; then',
        f'    llavajob_line=$1; echo "{MARK}$1" >&"$llavajob_log"',
        "  fi",
        "}",
        "llavajob_after_error() {  # EXIT_CODE LINE DEPTH",
        "  # Not in sourced files and subshells, and not for a pipeline whose end did not want all of its input (141).",
        '  (( $3 > llavajob_depth || BASH_SUBSHELL || $1 == 141 )) || llavajob_setup_failed "$1" "$2"',
        "}",
        "llavajob_before_exit() {  # EXIT_CODE",
        '  [[ ${llavajob_ended-} ]] || llavajob_setup_failed "$1" "${llavajob_line-0}"',
        "}",
    ]
