"""``llava merge``: adapters become one with the weights that they were trained on.

A run's or XTuner's folder keeps its layout, with whole parts where adapters were; a bare PEFT folder and its base
become a plain language model or vision tower. What was merged is noted beside the weights, so that it cannot happen
twice.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from llava.config import ConvertConfig
from llava.convert import check_output, manifest, request_of, write_aside, write_manifest
from llava.errors import ConfigError

if TYPE_CHECKING:
    from llava.export.architecture import Role
    from llava.export.bodies import How
    from llava.export.parts import Model, Part

Which = Literal["both", "language", "vision"]


def merge(config: ConvertConfig, which: str = "both") -> None:
    """Write the merged folder aside and move it in place.

    Args:
        config: source, output, bases, and how weights are written; its layout is the source's, whatever it says.
        which: adapters of which part are merged: both (all there are), language or vision.

    Raises:
        ConfigError: there is nothing to merge, it is merged already, or a base is missing.
        WeightsError: an adapter changes a layer that is not there.
    """
    if config.source is None:
        raise ConfigError("merge takes SOURCE OUTPUT", "llava merge runs/x/model x-merged")
    if which not in get_args(Which):
        raise ConfigError(f"part {which!r} is none of {', '.join(get_args(Which))}")
    sources = {name: getattr(config, name) for name in ("source", "language", "vision")}
    check_output(Path(config.output), "output", sources)
    from llava.export.bodies import How
    from llava.export.lora import is_adapter
    from llava.export.weights import byte_count
    from llava.hf_device import torch_dtype

    byte_count(config.max_shard_size)
    dtype = None if config.dtype in ("auto", "keep") else torch_dtype(config.dtype)
    how = How(dtype, config.max_shard_size, config.base)
    write_one = _write_bare if is_adapter(Path(config.source)) else _write_model
    write_one(config, Path(config.source), which, how)


def _write_model(config: ConvertConfig, source: Path, which: str, how: How) -> None:
    from llava.export import layouts
    from llava.export.architecture import ROLES

    layout = layouts.detect(source)
    model = layouts.read(source, request_of(config))
    chosen: list[Role] = [role for role in ROLES if model.part(role).adapter is not None and which in ("both", role)]
    if not chosen:
        _refuse(source, model, which)
    parts = {role: _whole(model.part(role), model.dtype, how) for role in chosen}
    result = replace(model, language=parts.get("language", model.language), vision=parts.get("vision", model.vision))

    def fill(folder: Path) -> None:
        said = layouts.write(result, folder, layout, how)
        write_manifest(folder, manifest(result, layout, **said))

    write_aside(Path(config.output), fill)


def _write_bare(config: ConvertConfig, source: Path, which: str, how: How) -> None:
    from llava.export.bodies import write_body
    from llava.export.lora import read_adapter
    from llava.export.parts import Part, base_part

    adapter = read_adapter(source, config.allow_pickle)
    role: Role = "vision" if any(layer.startswith("encoder.") for layer in adapter.layers) else "language"
    if which not in ("both", role):
        raise ConfigError(f"{source} holds {role} adapters, not {which} adapters")
    base = request_of(config).base(role) or adapter.config.get("base_model_name_or_path")
    missing = f"{source} does not say which {role} model its adapters were trained on"
    part = Part(role, "lora", base, base_part(role, base, missing, config.allow_pickle), adapter)
    body = part.whole(how.base, "fp32")
    write_aside(Path(config.output), lambda folder: write_body(folder, role, body, how))


def _whole(part: Part, dtype: str, how: How) -> Part:
    from llava.export.parts import Part

    body = part.whole(how.base, dtype)
    return Part(part.role, "full", part.base, lambda: body)


def _refuse(source: Path, model: Model, which: str) -> None:
    parts = [part for part in (model.language, model.vision) if which in ("both", part.role)]
    done = [part.role for part in parts if part.tuning == "full" and part.body.marks]
    if done:
        raise ConfigError(f"the adapters of {source} are merged already ({', '.join(done)})", "Use it as it is.")
    what = "adapters" if which == "both" else f"{which} adapters"
    raise ConfigError(f"{source} holds no {what}", "There is nothing to merge.")
