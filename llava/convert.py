"""``python -m llava.convert --config FILE``: a trained run becomes a folder that transformers loads.

Without a source, two bases and a fresh projector do: the untrained model, to compare a trained one with.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.config import ConvertConfig, ConvertJob
from llava.entry import guarded, load_job
from llava.errors import ConfigError

if TYPE_CHECKING:
    from llava.model.load import Loaded

MANIFEST = "llavajob.json"
FORMAT = 1

log = logging.getLogger("llava.convert")  # __name__ is __main__ where this is run as a module


def convert_job(job: ConvertJob) -> None:
    """Write the exported folder aside and move it in place.

    Raises:
        ConfigError: a folder is missing, the output is someone else's, or the request does not fit together.
        WeightsError: a weight is missing, left over or of another shape.
    """
    output = Path(job.convert.output)
    _check_request(job.convert)
    _check_output(output, job.convert)
    from llava.export.weights import byte_count  # torch comes with it, so mistakes were looked for before

    byte_count(job.convert.max_shard_size)
    loaded = _load(job)
    aside = output.with_name(f".{output.name}.tmp-{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        _write(job.convert, loaded, aside)
        _move(aside, output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    log.info("wrote %s", output)


def _check_request(config: ConvertConfig) -> None:
    if config.source is None and (config.language is None or config.vision is None):
        raise ConfigError("convert needs a source, or both language and vision for an untrained model")
    if config.source is not None and not (Path(config.source) / "llava.json").is_file():
        raise ConfigError(f"no trained model in {config.source}: llava.json is missing", "Name a run's model folder.")


def _check_output(output: Path, config: ConvertConfig) -> None:
    if output.exists() and not (output / MANIFEST).exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"{output} exists and is not a folder that convert wrote", "Choose another output.")
    for name in ("source", "language", "vision"):
        value = getattr(config, name)
        if value is not None and Path(value).exists() and _inside(Path(value), output):
            raise ConfigError(f"convert.output {output} holds convert.{name} {value}", "Choose another output.")


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _load(job: ConvertJob) -> Loaded:
    if job.convert.source is None:
        return _untrained(job)
    return _trained(job.convert, job.convert.source)


def _untrained(job: ConvertJob) -> Loaded:
    """Bases with the projector that a training with the same seed starts from."""
    from llava.config import ModelConfig, PartConfig, VisionConfig
    from llava.hf_device import torch_dtype
    from llava.model.load import build

    config = job.convert
    assert config.language is not None and config.vision is not None  # checked at the start
    model = ModelConfig(
        template=config.template or "vicuna",
        language=PartConfig(path=config.language),
        vision=VisionConfig(path=config.vision),
    )
    return build(model, torch_dtype(config.dtype), seed=job.seed)


def _trained(config: ConvertConfig, source: str) -> Loaded:
    import torch

    from llava.hf_device import torch_dtype
    from llava.model.load import load_trained, read_manifest

    manifest = read_manifest(source)
    four_bit = any(manifest[part]["quantize"] == "nf4" for part in ("language", "vision"))
    as_trained = four_bit and config.base == "as_trained"
    # 4-bit weights depend on the format that they were quantised from, and a little on the device.
    dtype = torch_dtype(manifest.get("dtype", "fp32") if as_trained else config.dtype)
    device = "cuda" if as_trained and torch.cuda.is_available() else "cpu"
    with _with_bases(Path(source), manifest, config) as folder:
        return load_trained(folder, dtype, device, original=config.base == "original")


@contextmanager
def _with_bases(source: Path, manifest: dict[str, Any], config: ConvertConfig) -> Iterator[Path]:
    """The source as it would be with the request's bases and template, without touching it."""
    changed = json.loads(json.dumps(manifest))
    if config.template is not None:
        changed["template"] = config.template
    for part in ("language", "vision"):
        if getattr(config, part) is not None:
            changed[part]["path"] = getattr(config, part)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in source.resolve().iterdir():
            if path.name != "llava.json":
                (folder / path.name).symlink_to(path)
        (folder / "llava.json").write_text(json.dumps(changed), encoding="utf-8")
        yield folder


def _write(config: ConvertConfig, loaded: Loaded, folder: Path) -> None:
    from llava.export import files
    from llava.export.weights import weights, write
    from llava.hf_device import torch_dtype

    model, dtype = loaded.model, torch_dtype(config.dtype)
    tokenizer = files.with_specials(loaded.tokenizer)
    rows = files.vocabulary(model.language.get_input_embeddings().weight.shape[0], tokenizer)
    described = files.model_config(loaded, tokenizer, rows, str(dtype).removeprefix("torch."))
    described.save_pretrained(folder)
    files.write_processor(folder, loaded, tokenizer)
    files.write_generation(folder, loaded, tokenizer)
    files.write_for_older_readers(folder)
    with model.vision.whole() as tower:
        every = list(weights(model.language, tower, model.projector, rows, described.tie_word_embeddings))
        write(folder, every, dtype, config.max_shard_size)
    # Last: a folder without it is not ours.
    (folder / MANIFEST).write_text(json.dumps(_manifest(config, loaded), indent=2) + "\n", encoding="utf-8")


def _manifest(config: ConvertConfig, loaded: Loaded) -> dict[str, Any]:
    from llava.model.load import versions

    return {
        "format": FORMAT,
        "template": loaded.config.template,
        "square": loaded.square,
        "vision_layer": loaded.config.vision.layer,
        "step": loaded.step,
        "trained": config.source is not None,
        "base": config.base,
        "dtype": config.dtype,
        "language": Path(loaded.config.language.path).name,
        "vision": Path(loaded.config.vision.path).name,
        "versions": versions(),
    }


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
