"""The layout of a training run's ``model`` folder (see ``llava/model/load.py``)."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llava.errors import ConfigError, WeightsError
from llava.export.architecture import HEAD, ROLES, Role, linear_weights
from llava.export.bodies import How, projector_weights, write_body
from llava.export.lora import Adapter, inside, read_adapter, write_adapter
from llava.export.parts import Model, Part, base_part, read_said
from llava.export.request import Request
from llava.export.tensors import Weights, read_weights
from llava.export.weights import write
from llava.model.load import FORMAT, MANIFEST, read_manifest, versions
from llava.model.projector import CONFIG, Projector
from llava.model.vision import layers_used

UNUSED = "unused_layers"
"""File beside a tower's adapters with those on layers that never run: XTuner makes them, training here does not."""
_HEAD = HEAD.removesuffix(".weight")
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


def holds(folder: Path) -> bool:
    """Whether a folder is of this layout."""
    return (folder / MANIFEST).is_file()


def read(folder: Path, request: Request) -> Model:
    """What the folder holds, none of its weights read yet.

    Raises:
        ConfigError: the manifest is unreadable, or of another format.
        WeightsError: the projector's or an adapter's weights are wrong.
    """
    manifest = read_manifest(folder)
    language, vision = (_read_part(folder, role, manifest[role], request) for role in ROLES)
    return Model(
        language,
        vision,
        projector_weights(str(folder), read_weights(folder / "projector", request.allow_pickle), {}),
        request.template or manifest["template"],
        manifest["square"],
        manifest["vision_layer"],
        manifest["step"],
        dtype=manifest.get("dtype", "fp32"),
        said=read_said(folder),
    )


def _read_part(folder: Path, role: Role, said: dict[str, Any], request: Request) -> Part:
    base = request.base(role) or said["path"]
    allowed = bool(said.get("allow_pickle"))
    get = base_part(role, base, "", request.allow_pickle or allowed)
    if said["tuning"] == "full":
        get = base_part(role, str(folder / role), "", request.allow_pickle)
    adapter = _read_adapter(folder / f"{role}_adapter", request) if said["tuning"] == "lora" else None
    return Part(role, said["tuning"], base, get, adapter, said["quantize"], allowed)


def _read_adapter(folder: Path, request: Request) -> Adapter:
    adapter = read_adapter(folder, request.allow_pickle)
    if (folder / f"{UNUSED}.safetensors").is_file():
        more = {inside(name): weight for name, weight in read_weights(folder, False, UNUSED).items()}
        adapter = replace(adapter, weights={**adapter.weights, **more})
    return adapter


def write_run(model: Model, folder: Path, how: How) -> None:
    """Write the layout; adapters stay adapters, and frozen parts are named.

    Raises:
        ConfigError: template or a base is not known, or adapters are of a shape that a run cannot have.
        WeightsError: adapters are not on the layers that a run has them on.
    """
    write_projector(model.projector, folder / "projector", how)
    for role in ROLES:
        part = model.part(role)
        if part.tuning == "full":
            write_body(folder / role, role, part.body, how)
        elif part.adapter is not None:
            _write_adapter(model, part, folder / f"{role}_adapter", how)
    manifest = {
        "format": FORMAT,
        "template": model.named_template(),
        "vision_layer": model.layer,
        "square": model.square,
        "step": model.step,
        "dtype": model.dtype,
        "language": _said(model.language),
        "vision": _said(model.vision),
        "versions": versions(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_projector(projector: Weights, folder: Path, how: How) -> None:
    """Write a run's projector folder."""
    folder.mkdir(parents=True)
    language, vision = projector["linear_1.weight"].shape
    with torch.device("meta"):
        described = Projector(vision, language).config()
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    write(folder, projector, how.dtype, how.max_shard_size)


def _said(part: Part) -> dict[str, Any]:
    if part.base is None and part.tuning != "full":
        raise ConfigError(f"the source does not name its {part.role} base", f"Name it: --{part.role} FOLDER.")
    base = part.base or part.role
    return {
        "path": str(Path(base).resolve()) if Path(base).is_dir() else base,
        "tuning": part.tuning,
        "quantize": part.quantize if part.tuning != "full" else "none",
        "lora": None if part.adapter is None else _shape(part.adapter),
        "allow_pickle": part.allow_pickle,
    }


def _shape(adapter: Adapter) -> dict[str, Any]:
    config = adapter.config
    if config.get("use_rslora"):
        raise ConfigError("a run's adapters are not scaled by the root of their rank", "Merge them: llava merge.")
    return {
        "rank": config["r"],
        "alpha": int(config["lora_alpha"]),
        "dropout": config["lora_dropout"],
        "head": _HEAD in adapter.layers,
    }


def _write_adapter(model: Model, part: Part, folder: Path, how: How) -> None:
    adapter = part.adapter
    assert adapter is not None
    used = None if part.role == "language" else layers_used(model.layer, part.body.config.num_hidden_layers)
    unused = {name: weight for name, weight in adapter.weights.items() if not _runs(name, used)}
    kept = replace(adapter, weights={name: w for name, w in adapter.weights.items() if name not in unused})
    wanted = {name.removesuffix(".weight") for name in linear_weights(part.role, part.body.config)}
    wanted |= {_HEAD} & set(kept.layers)
    if differing := set(kept.layers) ^ {name for name in wanted if _runs(name, used)}:
        raise WeightsError(
            f"a run has adapters on every linear layer of its {part.role} model; these differ at "
            + ", ".join(sorted(differing)[:5]),
            "Merge them first: llava merge.",
        )
    write_adapter(folder, kept, how.dtype, how.max_shard_size)
    if unused:
        write(folder, unused, how.dtype, how.max_shard_size, stem=UNUSED)


def _runs(name: str, used: int | None) -> bool:
    found = _LAYER.match(name)
    return used is None or found is None or int(found[1]) < used
