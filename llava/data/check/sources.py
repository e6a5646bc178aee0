"""What is to be checked: a recipe, a run, a config or a file by itself becomes a list of sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from llava.config import EvalJob, Template, TrainJob, parse
from llava.errors import ConfigError
from llava.yaml_file import read_file, read_values

_HOW = (
    "Give a recipe, a run's folder, a config.yaml, an MMBench .tsv, a folder of RefCOCO .json files, "
    "or --records FILE --images FOLDER."
)


@dataclass(frozen=True)
class Training:
    """Conversations and their pictures."""

    title: str
    records: Path
    images: Path
    tokenizer: Path | None = None
    """Folder of the language model; None: lengths are not measured."""
    template: str | None = None
    max_length: tuple[int, int] = (1472, 1472)
    """Tokens kept of a record with a picture, and of one without."""
    may_miss: int = 0
    """Pictures that training skips before it stops."""


@dataclass(frozen=True)
class Benchmark:
    """A TSV file with its pictures inside, or RefCOCO's annotations with pictures in a folder."""

    title: str
    data: Path
    images: Path | None = None


Source = Training | Benchmark


def by_hand(
    records: str | None, images: str | None, tokenizer: str | None, template: str | None, max_length: int
) -> list[Source]:
    """Records that no recipe names.

    Raises:
        ConfigError: the records or their pictures are not named, or there is no such template.
    """
    if records is None or images is None:
        raise ConfigError("nothing to check is named", _HOW)
    if template is not None and template not in get_args(Template):
        raise ConfigError(f"template {template!r} is none of {', '.join(get_args(Template))}")
    words = Path(tokenizer) if tokenizer else None
    longest = (max_length, max_length)
    return [Training(Path(records).stem, Path(records), Path(images), words, template or "vicuna", longest)]


def find(target: str, options: Sequence[str] = (), images: str | None = None) -> list[Source]:
    """The sources that a word on the command line means.

    Args:
        target: "-" for standard input, a file, a folder, or a recipe's name.
        options: of ``llavajob render``, where the target is a recipe.
        images: where pictures are, instead of where a config says.

    Raises:
        ConfigError: it means nothing, or nothing in it reads data.
    """
    path = Path(os.path.expanduser(target))
    if target == "-":
        sources = _in_text(sys.stdin.read(), "standard input")
    elif path.suffix == ".tsv" or (path.is_dir() and any(path.rglob("*refcoco*.json"))):
        sources = [Benchmark(path.stem or str(path), path)]
    elif path.is_dir() and (configs := _configs(path)):
        sources = [source for at in configs for source in _in_text(read_file(at), str(at))]
    elif path.is_file():
        text = read_file(path)
        sources = _in_text(_render(target, options) if _is_recipe(text) else text, str(path))
    else:
        sources = _in_text(_render(target, options), f"recipe {target}")
    if not sources:
        raise ConfigError(f"nothing in {target} reads data", _HOW)
    return [replace(source, images=Path(images)) for source in sources] if images else sources


def _configs(folder: Path) -> list[Path]:
    """Of a run, or of a pipeline's stages."""
    configs = [folder / "config.yaml", *sorted(folder.glob("stages/*/config.yaml"))]
    return [config for config in configs if config.is_file()]


def _in_text(text: str, where: str) -> list[Source]:
    """Of one config, or of every config in a rendered plan."""
    try:
        values = read_values(text, where)
    except ConfigError:
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"{where} holds no config", "llavajob render RECIPE --on local | llava data check -")
    configs = values.get("configs")
    many = configs if isinstance(configs, dict) else {where: values}
    return [source for path, config in many.items() for source in _of_config(config, str(path))]


def _of_config(values: Any, where: str) -> Iterator[Source]:
    job = parse(values, where)
    stage = Path(job.run_dir)
    title = stage.name if stage.parent.name == "stages" else job.kind
    if isinstance(job, TrainJob):
        yield Training(
            title,
            Path(job.data.records),
            Path(job.data.images),
            Path(job.model.language.path),
            job.model.template,
            (job.data.max_length, job.data.max_length_text_only or job.data.max_length),
            job.data.max_bad_images,
        )
    elif isinstance(job, EvalJob):
        images = getattr(job.eval, "images", None)
        yield Benchmark(title, Path(job.eval.data), Path(images) if images else None)


def _is_recipe(text: str) -> bool:
    """A recipe lacks what resolving it adds: the run's folder in each config."""
    try:
        values = read_values(text, "the file")
    except ConfigError:
        return False
    return isinstance(values, dict) and "run_dir" not in values and "configs" not in values


def _render(recipe: str, options: Sequence[str]) -> str:
    """The plan of a recipe, as the launcher's command prints it; the launcher alone resolves recipes."""
    beside = Path(sys.executable).with_name("llavajob")
    command = str(beside) if os.access(beside, os.X_OK) else shutil.which("llavajob")
    if command is None:
        raise ConfigError(f"{recipe} is no file here, and no llavajob to look for a recipe of that name", _HOW)
    done = subprocess.run([command, "render", recipe, "--on", "local", *options], capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{recipe} is neither a file nor a recipe:\n{done.stderr.strip()}", _HOW)
    return done.stdout
