"""The layout of XTuner's ``pth_to_hf --save-format xtuner`` (0.1.23).

::

    llm_adapter/              PEFT folder, where the language model was tuned with LoRA
    config.json, weights, tokenizer   in the root, where it was tuned in full
    visual_encoder_adapter/   PEFT folder; names have transformers 4's vision_model.
    visual_encoder/           tower with image processor, where it was tuned in full
    projector/                config, code, weights model.0.* and model.2.*
    xtuner_config.py          the training's config, where XTuner wrote the folder; it is read as text, never run

Frozen parts are not there.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, get_args

from llava import config
from llava.errors import ConfigError
from llava.export import fused, remote
from llava.export.architecture import ROLES, TOWER, Role, key_of
from llava.export.bodies import How, projector_weights, write_body
from llava.export.lora import is_adapter, read_adapter, write_adapter
from llava.export.parts import Model, Part, base_part, read_said
from llava.export.request import Request
from llava.export.tensors import Weights, read_weights
from llava.export.weights import write
from llava.model.weights import read_config

_PROJECTOR = {f"model.{n}.{kind}": f"linear_{n // 2 + 1}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
_ADAPTERS: dict[Role, str] = {"language": "llm_adapter", "vision": "visual_encoder_adapter"}
_WHOLE: dict[Role, str] = {"language": ".", "vision": "visual_encoder"}
_BASE_KEYS: dict[Role, str] = {"language": "llm_name_or_path", "vision": "visual_encoder_name_or_path"}
_CODE = ("configuration_projector.py", "modeling_projector.py")


def holds(folder: Path) -> bool:
    """Whether a folder is of this layout."""
    try:
        values = json.loads((folder / "projector" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return "visual_hidden_size" in values


def read(folder: Path, request: Request) -> Model:
    """What the folder holds, none of its weights read yet.

    Raises:
        ConfigError: weights are pickled and that is not allowed.
        WeightsError: the projector's or an adapter's weights are wrong.
    """
    said, text = read_said(folder), _training_config(folder)
    language, vision = (_read_part(folder, role, text, request) for role in ROLES)
    projector = read_weights(folder / "projector", request.allow_pickle)
    square = "crop" if re.search(r"pad_image_to_square\s*=\s*False", text) else "pad"
    layer = re.search(r"visual_select_layer\s*=\s*(-?\d+)", text)
    return Model(
        language,
        vision,
        projector_weights(str(folder), projector, _PROJECTOR),
        request.template or said.get("template") or _template(text),
        said.get("square", square),
        said.get("vision_layer", int(layer[1]) if layer else -2),
        said.get("step", 0),
        dtype=said.get("trained_dtype", "fp16"),
        said=said,
    )


def _read_part(folder: Path, role: Role, text: str, request: Request) -> Part:
    said = read_said(folder)
    adapter_folder, whole = folder / _ADAPTERS[role], folder / _WHOLE[role]
    adapter = read_adapter(adapter_folder, request.allow_pickle) if is_adapter(adapter_folder) else None
    trained_on = None if adapter is None else adapter.config.get("base_model_name_or_path")
    written = re.search(_BASE_KEYS[role] + r"\s*=\s*['\"]([^'\"]+)['\"]", text)
    base = request.base(role) or said.get("bases", {}).get(role) or (written[1] if written else None) or trained_on
    # XTuner quantises the language model alone.
    four_bit = role == "language" and re.search(r"load_in_4bit\s*=\s*True", text)
    quantize = said.get("quantize", {}).get(role, "nf4" if four_bit else "none")
    if adapter is None and (whole / "config.json").is_file():
        return Part(role, "full", base, base_part(role, str(whole), "", request.allow_pickle))
    what = "language model" if role == "language" else "vision tower"
    missing = f"{folder} does not hold its {what}, which was {'frozen' if adapter is None else 'tuned with LoRA'}"
    get = base_part(role, base, missing, request.allow_pickle)
    if adapter is not None and fused.on_fused_layers(adapter):
        adapter = fused.to_llama(adapter, _base_config(base, missing))
    return Part(role, "frozen" if adapter is None else "lora", base, get, adapter, quantize)


def _base_config(base: str | None, missing: str) -> dict[str, Any]:
    if base is None:
        raise ConfigError(missing, "Name it: --language FOLDER (convert.language).")
    return read_config(base, key_of("language"))


def _training_config(folder: Path) -> str:
    try:
        return (folder / "xtuner_config.py").read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _template(text: str) -> str | None:
    found = re.search(r"PROMPT_TEMPLATE\.(\w+)", text)
    return found[1] if found and found[1] in get_args(config.Template) else None


def write_xtuner(model: Model, folder: Path, how: How) -> None:
    """Write the layout; adapters stay adapters, and frozen parts are not written."""
    _write_projector(model.projector, folder / "projector", how)
    for role in ROLES:
        part = model.part(role)
        if part.tuning == "full":
            write_body(folder / _WHOLE[role], role, part.body, how)
        elif part.adapter is not None:
            prefix = TOWER if role == "vision" else ""
            changes = {"base_model_name_or_path": part.base}
            adapter = part.adapter
            if role == "language" and fused.was_fused(adapter):
                adapter = fused.to_internlm2(adapter, _base_config(part.base, "the source does not name its base"))
            write_adapter(folder / _ADAPTERS[role], adapter, how.dtype, how.max_shard_size, prefix, **changes)


def _write_projector(projector: Weights, folder: Path, how: How) -> None:
    folder.mkdir(parents=True)
    language, vision = projector["linear_1.weight"].shape
    values = {
        "architectures": ["ProjectorModel"],
        "auto_map": {
            "AutoConfig": "configuration_projector.ProjectorConfig",
            "AutoModel": "modeling_projector.ProjectorModel",
        },
        "model_type": "projector",
        "visual_hidden_size": vision,
        "llm_hidden_size": language,
        "depth": 2,
        "hidden_act": "gelu",
        "bias": True,
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    for name in _CODE:
        shutil.copyfile(Path(str(remote.__file__)).with_name(name), folder / name)
    theirs = {ours: name for name, ours in _PROJECTOR.items()}
    named = {theirs[name]: weight for name, weight in projector.items()}
    write(folder, named, how.dtype, how.max_shard_size)
