"""Whatever a recipe or a profile says, it stays the text that it was in the batch script and its head."""

from __future__ import annotations

import datetime
import math
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.backends.slurm.header import header_value
from launcher.backends.slurm.settings import find_problems
from launcher.one_line import shell_word
from launcher.tree import Tree
from tests.odd_texts import odd_texts
from tests.shell import Shell

Write = Callable[..., str]


def profile(shell: Shell, **keys: Any) -> None:
    """Write a project's file with one profile named site, whose Python starts nothing."""
    values = {"backend": "slurm", "python": "/bin/false", "runs": str(shell.folder / "runs"), **keys}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump({"profiles": {"site": values}}))


def rendered(shell: Shell, recipe: str, check: int = 0) -> str:
    result = shell("submit", recipe, "--on", "site", "--name", "run", "--dry-run", check=check)
    return result.out if check == 0 else result.err


def test_words_for_the_shell_are_what_they_were_and_stay_on_their_line(tmp_path: Path) -> None:
    texts = odd_texts(600, seed=1)
    words = [shell_word(text) for text in texts]
    assert not any("\n" in word or "\r" in word or "\x1b" in word for word in words)
    script = tmp_path / "words.sh"
    script.write_text("printf '%s\\0' \\\n  " + " \\\n  ".join(words) + "\n", encoding="utf-8")
    for locale in ("C", "C.UTF-8"):
        done = subprocess.run(["bash", script], cwd=tmp_path, capture_output=True, env={**os.environ, "LC_ALL": locale})
        assert done.stderr == b"" and done.stdout.decode().split("\0")[:-1] == texts
    assert not list(tmp_path.rglob("INJECTED"))


def test_bytes_that_are_no_text_reach_the_shell_as_they_are(tmp_path: Path) -> None:
    odd = b"caf\xe9 \xff\n".decode("utf-8", "surrogateescape")
    done = subprocess.run(["bash", "-c", f"printf %s {shell_word(odd)}"], capture_output=True, check=True)
    assert done.stdout == b"caf\xe9 \xff\n" and shell_word(odd).isascii()


def test_nothing_of_an_environment_is_run_by_the_batch_script(shell: Shell, recipe: Write) -> None:
    texts = odd_texts(400, seed=2)
    values = {f"V{number}": text.replace("${", "$ {") for number, text in enumerate(texts)}
    profile(shell, environment={f"P{number}": text for number, text in enumerate(texts[:80])})
    text = rendered(shell, recipe(environment=values))
    script = shell.folder / "script.sh"
    script.write_text(text, encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("#SBATCH --array")] == []
    assert subprocess.run(["bash", "-n", script], capture_output=True).stderr == b""
    # Its loop does not begin without a Python of the launcher, and everything that is no comment has been run by then.
    text = text.replace(shlex.quote(_own_python(text)), "/bin/false")
    script.write_text(text, encoding="utf-8")
    done = subprocess.run(["bash", script], cwd=shell.folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert not list(shell.folder.rglob("INJECTED"))


def _own_python(text: str) -> str:
    line = next(line for line in text.splitlines() if line.startswith("while attempt=$("))
    return shlex.split(line.removeprefix("while attempt=$("))[0]


def as_sbatch_reads(text: str) -> str:
    """The value of an option in a batch script's head, as src/sbatch/opt.c (_get_argument) takes it apart."""
    value, quote, escaped = "", "", False
    for character in text:
        if escaped:
            value, escaped = value + character, False
        elif character == "\\":
            escaped = True
        elif quote and character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        elif not quote and (character.isspace() or character == "#"):
            break
        else:
            value += character
    assert not quote, "sbatch would refuse it"
    return value


def test_values_of_the_head_are_what_they_were_to_sbatch(shell: Shell, recipe: Write) -> None:
    texts = odd_texts(500, seed=3, without="\0\n\r\x0b\x1b\x7f\x85\u2028")
    assert len(texts) > 100
    for text in texts:
        assert as_sbatch_reads(shlex.quote(header_value(text))) == text
    comment = "it's \\ \"# %j $(touch INJECTED)"
    profile(shell, slurm={"comment": comment, "extra": {"tmp": comment, "nice": 7}})
    lines = rendered(shell, recipe()).splitlines()
    for option in ("--comment=", "--tmp="):
        line = next(line for line in lines if line.startswith(f"#SBATCH {option}"))
        assert as_sbatch_reads(line.removeprefix("#SBATCH ")) == option + comment


def slurm_problems(**place: Any) -> list[str]:
    """What is wrong with what a profile says to Slurm, one text a problem."""
    tree = Tree()
    for key, value in place.items():
        tree.set((key,), value, "here")
    return [problem.message for problem in find_problems(tree)]


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\x85", "\u2028", "\x1b", "\udcff"])
@pytest.mark.parametrize("key", ["comment", "partition", "mail_user", "container", "extra", "modules"])
def test_a_line_of_the_head_is_refused_where_it_would_break(key: str, character: str) -> None:
    text = f"a{character}#SBATCH --array=1-9"
    value = {"extra": {"begin": text}, "modules": ["gcc", text]}.get(key, text)
    problems = slurm_problems(**{key: value})
    assert len(problems) == 1 and problems[0].startswith(f"slurm.{key}") and " in it" in problems[0]
    assert slurm_problems(**{key: {"extra": {"begin": "now"}, "modules": ["gcc"]}.get(key, "a#b")}) == []


@pytest.mark.parametrize("name", ["50%", "%j", "back\\slash"])
def test_a_folder_that_slurm_would_read_otherwise_is_refused(shell: Shell, recipe: Write, name: str) -> None:
    profile(shell, runs=str(shell.folder / name))
    said = rendered(shell, recipe(), check=2)
    assert "the run's folder" in said and "Set runs: in the profile" in said


@pytest.mark.parametrize("name", ["two\nlines", "tab\there"])
def test_a_folder_that_breaks_a_line_is_refused(shell: Shell, recipe: Write, name: str) -> None:
    profile(shell, runs=str(shell.folder / name))
    assert "runs has a line break or another control character in it" in rendered(shell, recipe(), check=2)


def test_lines_and_arguments_that_no_shell_reads_are_refused(shell: Shell, recipe: Write) -> None:
    for line in ("a\0b", "a\r", "source x\r\n", "caf\udce9"):
        assert len(slurm_problems(setup=["true", line])) == 1
    assert slurm_problems(setup=["if true; then\n\techo 'it''s'\nfi # \x1b \x85"]) == []
    profile(shell, slurm={"container": "it's", "setup": ["a\rb"]})
    said = rendered(shell, recipe(), check=2)
    assert 'slurm.container is "it\'s"; ' in said and "slurm.setup: 'a\\rb' has a carriage return in it" in said
    assert said.count("llavajob.yaml:") == 2


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"nice": [1]}, "slurm.extra.nice is a list; "),
        ({"nice": {"a": 1}}, "slurm.extra.nice is a mapping; "),
        ({"nice": math.nan}, "slurm.extra.nice is nan; a finite number"),
        ({"nice": math.inf}, "slurm.extra.nice is inf; a finite number"),
        ({"begin": datetime.date(2030, 1, 1)}, "slurm.extra.begin is a date; text (in quotes)"),
        ({"p": "high"}, "slurm.extra.p is not the long name of an option"),
        ({"-p": "high"}, "slurm.extra.-p is not the long name of an option"),
        ({"--nice": 5}, "slurm.extra.--nice has dashes that llavajob adds itself; leave them out: nice"),
        ({"nice 5\n#SBATCH --array": 1}, "is not the name of an option"),
        ({"nice=5": 1}, "is not the name of an option"),
        ({"": 1}, "is not the name of an option"),
        ({"Nice": 1}, "is not the name of an option"),
        ({"arr": "1-9"}, "slurm.extra.arr abbreviates array, which is set by llavajob"),
        ({"out": "x"}, "slurm.extra.out abbreviates output, which is set by llavajob"),
        ({"wait": True}, "slurm.extra.wait is set by llavajob"),
        ({"test_only": True}, "slurm.extra.test_only is set by llavajob"),
        ({"quiet": True}, "slurm.extra.quiet is set by llavajob"),
        ({"clusters": "other"}, "slurm.extra.clusters is set by llavajob"),
        ({"cpus-per-task": 3}, "slurm.extra.cpus-per-task has a key of its own: slurm.cpus"),
        ({"export": "NONE"}, "slurm.extra.export is 'NONE'; it has to begin with ALL"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(extra: dict[str, Any], words: str) -> None:
    problems = slurm_problems(extra=extra)
    assert len(problems) == 1 and words in problems[0]


def test_options_are_left_out_set_or_given_a_value(shell: Shell, recipe: Write) -> None:
    extra = {"overcommit": False, "nice": None, "hold": True, "switches": "1@5:00", "wait-all-nodes": 1, "tmp": 1.5}
    profile(shell, slurm={"extra": extra})
    given = {line for line in rendered(shell, recipe()).splitlines() if line.startswith("#SBATCH")}
    assert given >= {
        "#SBATCH --hold", "#SBATCH --switches=1@5:00", "#SBATCH --wait-all-nodes=1", "#SBATCH --tmp=1.5",
    }  # fmt: skip
    assert not [line for line in given if "overcommit" in line or "nice" in line]


@pytest.mark.parametrize(
    "place",
    [
        {"time": "9" * 30},
        {"time": "٩٠m"},
        {"mem": "9" * 400 + "K"},
        {"gpus": "９"},
        {"gpus": "gänger:8"},
        {"gres": "gpu:９"},
    ],
)
def test_numbers_are_ascii_and_of_a_size_that_can_be_meant(place: dict[str, str]) -> None:
    assert len(slurm_problems(**place)) == 1
