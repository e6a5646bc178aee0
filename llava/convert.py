"""``python -m llava.convert --config FILE``: a LLaVA model from one layout into another.

Without a source, two bases and a fresh projector do: the untrained model, to compare a trained one with.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.config import ConvertConfig, ConvertJob
from llava.entry import guarded, load_job
from llava.errors import ConfigError
from llava.submitter_umask import submitter_umask

if TYPE_CHECKING:
    from llava.export.layouts import Layout
    from llava.export.parts import Model
    from llava.export.request import Request

MANIFEST = "llavajob.json"
FORMAT = 1

log = logging.getLogger("llava.convert")  # __name__ is __main__ where this is run as a module


def convert_job(job: ConvertJob) -> None:
    """Write the exported folder aside and move it in place.

    Raises:
        ConfigError: a folder is missing, the output is someone else's, or the request does not fit together.
        WeightsError: a weight is missing, left over or of another shape.
    """
    config = job.convert
    if config.source is None and (config.language is None or config.vision is None):
        raise ConfigError("convert needs a source, or both language and vision for an untrained model")
    sources = {f"convert.{name}": getattr(config, name) for name in ("source", "language", "vision")}
    check_output(Path(config.output), "convert.output", sources)
    from llava.export import layouts  # torch comes with it, so mistakes were looked for before
    from llava.export.bodies import How
    from llava.export.weights import byte_count

    byte_count(config.max_shard_size)
    source = None if config.source is None else layouts.detect(Path(config.source))
    model = _untrained(job) if config.source is None else layouts.read(Path(config.source), request_of(config))
    how = How(_dtype(config, source), config.max_shard_size, config.base)

    def fill(folder: Path) -> None:
        said = layouts.write(model, folder, config.to, how)
        write_manifest(folder, manifest(model, config.to, base=config.base, **said))

    write_aside(Path(config.output), fill)


def check_output(output: Path, key: str, sources: dict[str, str | None]) -> None:
    """Stop where an output would replace what somebody else wrote, or what is read.

    Args:
        key: what the output is called, for the message.
        sources: what is read, by what it is called.

    Raises:
        ConfigError: it would.
    """
    if output.exists() and not (output / MANIFEST).exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"{output} exists and is not a folder that convert wrote", "Choose another output.")
    for name, value in sources.items():
        if value is not None and Path(value).exists() and _inside(Path(value), output):
            raise ConfigError(f"{key} {output} holds {name} {value}", "Choose another output.")


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def request_of(config: ConvertConfig) -> Request:
    """What a person says about the source."""
    from llava.export.request import Request

    return Request(config.language, config.vision, config.template, config.allow_pickle)


def _untrained(job: ConvertJob) -> Model:
    """Bases with the projector that a training with the same seed starts from."""
    import torch

    from llava.export.architecture import ROLES
    from llava.export.parts import Model, Part, base_part
    from llava.export.tensors import of_tensor
    from llava.model.projector import Projector

    config, request = job.convert, request_of(job.convert)
    language, vision = (
        Part(role, "frozen", request.base(role), base_part(role, request.base(role), "", config.allow_pickle))
        for role in ROLES
    )
    torch.manual_seed(job.seed)
    projector = Projector(vision.body.config.hidden_size, language.body.config.hidden_size).state_dict()
    weights = {name: of_tensor(tensor) for name, tensor in projector.items()}
    return Model(language, vision, weights, config.template or "vicuna", trained=False)


def _dtype(config: ConvertConfig, source: Layout | None) -> Any:
    from llava.hf_device import torch_dtype

    wanted = config.dtype
    if wanted == "auto":
        one_model = config.to in ("hf", "official") and source in ("run", "xtuner", None)
        wanted = "fp16" if one_model else "keep"
    return None if wanted == "keep" else torch_dtype(wanted)


def manifest(model: Model, layout: Layout, **said: Any) -> dict[str, Any]:
    """What llavajob.json says of a written folder."""
    from llava.model.load import versions

    return {
        "format": FORMAT,
        "layout": layout,
        "template": model.template,
        "square": model.square,
        "vision_layer": model.layer,
        "step": model.step,
        "trained": model.trained,
        "trained_dtype": model.dtype,
        "bases": {role: model.part(role).base for role in ("language", "vision")},
        "quantize": {role: model.part(role).quantize for role in ("language", "vision")},
        **said,
        "versions": versions(),
    }


def write_manifest(folder: Path, values: dict[str, Any]) -> None:
    """Write llavajob.json, last of all: a folder without it is not ours. Nulls are left out."""
    told = {key: value for key, value in values.items() if value is not None}
    (folder / MANIFEST).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_aside(output: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder aside and move it in place of the one before."""
    aside = output.with_name(f".{output.name}.tmp-{os.getpid()}")
    with submitter_umask(output):
        aside.mkdir(parents=True)
        try:
            fill(aside)
            _move(aside, output)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    log.info("wrote %s", output)


def _move(aside: Path, output: Path) -> None:
    old = output.with_name(f".{output.name}.old-{os.getpid()}")
    if output.exists():
        output.rename(old)
    aside.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def from_config(path: str) -> int:
    """What the command lines do; returns the exit code."""
    return guarded(lambda: convert_job(load_job(path, ConvertJob)), on_signal="stop", config_path=path)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m llava.convert", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", required=True, help="config of kind convert")
    return from_config(parser.parse_args(arguments).config)


if __name__ == "__main__":
    sys.exit(main())
