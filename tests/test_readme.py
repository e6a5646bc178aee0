"""The README speaks the truth: its commands exist, with the options it names, and its setup is what CI runs."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from launcher.backends.kubernetes import settings as kubernetes_settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"(?:^\$ |`|bin/)((?:llavajob|llava) [a-z|\\]+[^`\n]*)", README, re.MULTILINE)))
MODULES = {"llavajob": "launcher", "llava": "llava"}


@cache
def help_text(program: str, verb: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", MODULES[program], verb, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{program} {verb} is no command"
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_their_options_exist(command: str) -> None:
    program, verbs, *rest = command.replace("\\", "").split()
    options = {re.match(r"--[a-z0-9-]+", word.lstrip("["))[0] for word in rest if word.lstrip("[").startswith("--")}  # type: ignore[index]
    for verb in verbs.split("|"):
        shown = help_text(program, verb)
        assert not [option for option in options if option not in shown], command


def test_the_readme_names_every_command() -> None:
    listed = subprocess.run([sys.executable, "-m", "launcher", "--help"], capture_output=True, text=True, check=True)
    verbs = set(re.findall(r"^│ ([a-z]+) ", listed.stdout, re.MULTILINE))
    assert len(verbs) >= 9
    assert verbs <= {verb for command in COMMANDS for verb in command.split()[1].split("|")}


def test_ci_runs_the_readmes_test_command() -> None:
    blocks = re.findall(r"```bash\n(.*?)\n```", README, re.DOTALL)
    first, second = blocks[0], blocks[1]
    assert first.endswith(".venv/bin/llavajob submit quickstart --nodes 2 --follow")
    script = (ROOT / ".ci/run").read_text()
    for word in second.replace(".venv/bin/", "").split(" && ")[1:]:
        assert word in script


def test_the_images_recipe_copies_what_there_is_and_installs_it() -> None:
    """It cannot be built here: its lines are read as a builder reads them."""
    (text,) = re.findall(r"```dockerfile\n(.*?)\n```", README, re.DOTALL)
    lines = [line.split(maxsplit=1) for line in text.replace("\\\n", " ").splitlines()]
    assert {word for word, _ in lines} <= {"FROM", "RUN", "ENV", "COPY", "USER"} and lines[0][0] == "FROM"
    copied = [place for word, rest in lines if word == "COPY" for place in rest.split()[:-1]]
    assert all((ROOT / place).exists() for place in copied)
    build = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())
    packed = build["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*packed["packages"], *packed["force-include"], build["project"]["readme"], "pyproject.toml"}
    assert needed | {*build["project"]["license-files"]} <= {*copied}
    assert "train" in build["project"]["optional-dependencies"] and "pip install --no-cache-dir '/src[train]'" in text
    user = next(rest for word, rest in lines if word == "USER")
    assert user.split(":")[0] == str(
        kubernetes_settings.SCHEMA["properties"]["run_as"]["properties"]["user"]["default"]
    )


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
