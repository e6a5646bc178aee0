"""The layout of LLaVA's own code (haotian-liu/LLaVA): one causal language model that carries the other parts.

The root holds a language model's folder. Its config.json has ``mm_*`` keys; its weights have
``model.mm_projector.{0,2}.*`` and, where the tower was trained, ``model.vision_tower.vision_tower.vision_model.*``. A
frozen tower is only named (``mm_vision_tower``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llava.errors import ConfigError
from llava.export.architecture import ROLES, TOWER, checked, key_of, read_part_config
from llava.export.bodies import How, copy_tokenizer, projector_weights, unquantised, write_config, write_image_processor
from llava.export.parts import Body, Model, Part, base_part, read_said
from llava.export.request import Request
from llava.export.tensors import Weights, below, read_weights
from llava.export.weights import write
from llava.model.vision import has_class_token
from llava.model.weights import local_folder

_PROJECTOR_AT = "model.mm_projector."
_TOWER_AT = "model.vision_tower.vision_tower."
_PROJECTOR = {f"{n}.{kind}": f"linear_{n // 2 + 1}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
_TYPES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral"}
"""Its config's model types to those of the language model; before it was renamed, llava_llama was llava."""
_SQUARES = {"pad": "pad", "square": "crop", None: "crop"}
_OURS_ALONE = ("image_aspect_ratio", "image_grid_pinpoints", "use_mm_proj", "tune_", "freeze_", "unfreeze_", "mm_")


def holds(folder: Path) -> bool:
    """Whether a folder is of this layout."""
    return "mm_projector_type" in _config(folder) or "mm_vision_tower" in _config(folder)


def read(folder: Path, request: Request) -> Model:
    """What the folder holds, none of its weights read yet.

    Raises:
        ConfigError: the config asks for what LLaVA-1.5 has not, or weights are pickled and that is not allowed.
        WeightsError: a weight is missing, left over or of another shape.
    """
    values, said = _config(folder), read_said(folder)
    _check_kind(folder, values)
    weights = read_weights(folder, request.allow_pickle)
    projector = below(weights, _PROJECTOR_AT)
    tower = {name.removeprefix(TOWER): weight for name, weight in below(weights, _TOWER_AT).items()}
    words = {name: weight for name, weight in weights.items() if not name.startswith((_PROJECTOR_AT, _TOWER_AT))}
    base = request.language or said.get("bases", {}).get("language")
    return Model(
        Part("language", "full", base, _language(folder, values, words)),
        _vision(folder, values, tower, request),
        projector_weights(str(folder), projector, _PROJECTOR),
        request.template or said.get("template"),
        said.get("square") or _SQUARES[values.get("image_aspect_ratio")],  # type: ignore[arg-type]
        values.get("mm_vision_select_layer", -2),
        said.get("step", 0),
        dtype=said.get("trained_dtype", "fp16"),
        said=said,
    )  # fmt: skip


def _config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _check_kind(folder: Path, values: dict[str, Any]) -> None:
    wanted: dict[str, tuple[Any, ...]] = {
        "model_type": tuple(_TYPES),
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_vision_select_feature": ("patch", None),
        "image_aspect_ratio": tuple(_SQUARES),
        "mm_use_im_start_end": (False, None),
    }
    for key, known in wanted.items():
        if values.get(key) not in known:
            raise ConfigError(
                f"{folder}/config.json: {key} is {values.get(key)!r}, this reads LLaVA-1.5's {known[0]!r}"
            )


def _language(folder: Path, values: dict[str, Any], weights: Weights) -> Any:
    def get() -> Body:
        from transformers import AutoConfig

        plain = {key: value for key, value in values.items() if not key.startswith(_OURS_ALONE)}
        for key in ("architectures", "auto_map", "model_type", "tokenizer_model_max_length", "tokenizer_padding_side"):
            plain.pop(key, None)
        config = AutoConfig.for_model(_TYPES[values["model_type"]], **plain)
        marks = tuple(read_said(folder).get("merged", {}).get("language", ()))
        return Body(checked(str(folder), "language", weights, config), config, folder, marks)

    return get


def _vision(folder: Path, values: dict[str, Any], tower: Weights, request: Request) -> Part:
    name = request.vision or values.get("mm_vision_tower")
    if not tower:
        get = base_part("vision", name, f"{folder} neither holds nor names its vision tower", request.allow_pickle)
        return Part("vision", "frozen", name, get)

    def read_tower() -> Body:
        from transformers import CLIPVisionConfig

        said = read_said(folder)
        described = said.get("vision_config")
        files = folder if (folder / "preprocessor_config.json").is_file() else None
        if described is None or files is None:
            base = local_folder(str(name), key_of("vision"), "*.json")
            config, files = read_part_config("vision", base), files or base
        else:
            config = CLIPVisionConfig(**described)
        marks = tuple(said.get("merged", {}).get("vision", ()))
        return Body(checked(f"the tower in {folder}", "vision", tower, config), config, files, marks)

    return Part("vision", "full", name, read_tower)


def write_official(model: Model, folder: Path, how: How) -> dict[str, Any]:
    """Write the layout: adapters merged; a tower that was not trained is named, not written.

    Returns:
        what llavajob.json has to say beyond what it says of every layout.

    Raises:
        ConfigError: the language model is of a kind that LLaVA's code does not know, or nobody names the tower.
    """
    language = model.language.whole(how.base, model.dtype)
    tower = None if model.vision.tuning == "frozen" else model.vision.whole(how.base, model.dtype)
    kinds = {kind: theirs for theirs, kind in _TYPES.items()}
    if language.config.model_type not in kinds:
        raise ConfigError(f"LLaVA's own code has no language model of type {language.config.model_type}")
    if tower is not None and not has_class_token(tower.config):
        raise ConfigError("LLaVA's own code knows CLIP's towers alone, not SigLIP's")
    if model.vision.base is None:
        hint = "Name it: --vision openai/clip-vit-large-patch14-336, for example."
        raise ConfigError("an official folder names the vision tower, and the source does not", hint)
    theirs = {ours: name for name, ours in _PROJECTOR.items()}
    weights = dict(language.weights)
    weights |= {_PROJECTOR_AT + theirs[name]: weight for name, weight in model.projector.items()}
    if tower is not None:
        weights |= {_TOWER_AT + TOWER + name: weight for name, weight in tower.weights.items()}
        write_image_processor(tower.files, folder)
    write_config(folder, "language", language, how)
    _add_to_config(model, folder, kinds[language.config.model_type], tower is not None)
    copy_tokenizer(language, folder)
    write(folder, weights, how.dtype, how.max_shard_size)
    bodies = {"language": language, "vision": tower}
    return {
        "merged": {role: list(body.marks) for role in ROLES if (body := bodies[role]) is not None and body.marks},
        "vision_config": None if tower is None else _described(tower.config),
    }


def _described(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = unquantised(config).to_diff_dict()
    return {
        key: value for key, value in values.items() if key not in ("dtype", "architectures", "transformers_version")
    }


def _add_to_config(model: Model, folder: Path, model_type: str, with_tower: bool) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    base = str(model.vision.base)
    values |= {
        "architectures": ["LlavaLlamaForCausalLM" if model_type == "llava_llama" else "LlavaMistralForCausalLM"],
        "model_type": model_type,
        "image_aspect_ratio": "pad" if model.square == "pad" else "square",
        "mm_vision_tower": str(Path(base).resolve()) if Path(base).is_dir() else base,
        "mm_hidden_size": model.projector["linear_1.weight"].shape[1],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": model.layer,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": with_tower,
    }
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
