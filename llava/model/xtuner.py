"""Models that XTuner trained and published: its folder's adapters and projector on our modules.

The folder (``xtuner convert pth_to_hf``, XTuner 0.1.23)::

    llm_adapter/             PEFT folder, where the language model was tuned with LoRA
    (config.json, weights)   the language model in the root, where it was tuned in full
    visual_encoder_adapter/  PEFT folder; or visual_encoder/, a whole tower
    projector/               config.json; weights model.0.*, model.2.*

Adapters carry the names of the modules that they were trained on: InternLM2's own, and CLIP's as transformers 4 had
them. Both are mapped here; a key that finds no home is an error, since an adapter that is not applied goes unnoticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from llava.config import LoraConfig, ModelConfig, PartConfig, VisionConfig
from llava.errors import ConfigError, WeightsError
from llava.model import internlm
from llava.model.adapters import adapter_key, fill_adapters
from llava.model.join import LlavaModel
from llava.model.language import KEY, load_tokenizer
from llava.model.load import Loaded, language_part, vision_part
from llava.model.projector import Projector, fill_projector
from llava.model.shards import stored
from llava.model.weights import read_config

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])(\.default)?\.weight")
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
# Settings of PEFT that change what an adapter adds, with the values under which it is alpha / rank x B A.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_rslora": (None, False),
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
}


def is_xtuner(folder: str | Path) -> bool:
    """Whether a folder has XTuner's layout rather than ours or Hugging Face's."""
    folder = Path(folder)
    return (folder / "projector").is_dir() and not (folder / "llava.json").exists()


def load_xtuner(
    folder: str | Path,
    vision: str,
    template: str,
    language: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    layer: int = -2,
    quantize: Literal["none", "nf4"] = "none",
    allow_pickle: bool = False,
) -> Loaded:
    """The model of a folder that XTuner wrote, in eval mode.

    Args:
        vision: base tower; not read where the folder holds a whole one.
        template: the conversation template it was trained with, which the folder does not say.
        language: base language model, not read where the folder holds a whole one; None: the one its adapters name.
        layer: the tower's hidden state.
        quantize: hold the language model as it was trained (nf4), or as it was published.
        allow_pickle: read ``.bin`` files where there is no safetensors file.

    Raises:
        ConfigError: a folder is missing or of another kind, or an adapter is of a kind that is unknown.
        WeightsError: a weight is missing, left over or of another shape, or an adapter's key finds no home.
    """
    folder = Path(folder)
    if not (folder / "projector").is_dir():
        raise ConfigError(f"no model of XTuner's in {folder}: projector/ is missing")
    speaks = _language_config(folder, language, quantize, allow_pickle)
    sees = _vision_config(folder, vision, layer, allow_pickle)
    config = ModelConfig.model_validate({"template": template, "language": speaks, "vision": sees})
    tower, processor = vision_part(config.vision, config.vision.path, dtype, device, 0)
    model = language_part(config.language, config.language.path, dtype, device, 0)
    if config.vision.tuning == "lora":
        used = len(tower.clip.encoder.layers)
        state = map_vision(read_adapter(folder / "visual_encoder_adapter", allow_pickle), used)
        fill_adapters(tower.clip, state, str(folder / "visual_encoder_adapter"))
    if config.language.tuning == "lora":
        state = map_language(read_adapter(folder / "llm_adapter", allow_pickle), _base(config.language.path))
        fill_adapters(model, state, str(folder / "llm_adapter"))
    projector = Projector(tower.width, model.config.hidden_size)
    load_xtuner_projector(projector, folder / "projector", allow_pickle)
    whole = LlavaModel(tower, projector, model).to(device).requires_grad_(False).eval()
    return Loaded(whole, load_tokenizer(config.language.path), processor, config, dtype=dtype)


def read_adapter(folder: Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """A PEFT folder's weights by their names there.

    Raises:
        ConfigError: it holds none, or pickles that are not allowed.
        WeightsError: a file is torn.
    """
    return {name: tensor.read() for name, tensor in stored(folder, "adapter_model", allow_pickle).items()}


def adapter_lora(folder: Path, state: dict[str, Tensor] | None = None) -> LoraConfig:
    """Rank, alpha and dropout of a PEFT folder.

    Args:
        state: its weights, to see whether the head has an adapter.

    Raises:
        ConfigError: the folder is of a kind whose update is not alpha / rank x B A.
    """
    values = _peft_config(folder)
    strange = [f"{key}: {values[key]}" for key, plain in _PLAIN.items() if key in values and values[key] not in plain]
    if strange:
        raise ConfigError(f"the adapter in {folder} is of a kind that cannot be mapped ({', '.join(strange)})")
    modules = [module for module, _, _ in _factors(state or {})]
    try:
        return LoraConfig(
            rank=values["r"],
            alpha=values["lora_alpha"],
            dropout=values.get("lora_dropout", 0.0),
            head=bool({"output", "lm_head"} & set(modules)),
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{folder / 'adapter_config.json'} is damaged: {error!r}") from None


def map_language(state: dict[str, Tensor], base: dict[str, Any]) -> dict[str, Tensor]:
    """A language adapter's weights for the model that ``load_language`` makes of its base.

    InternLM2's ``wqkv`` becomes q, k and v: B's rows are dealt out as the layer's own, and each gets a copy of A, so
    that every row of B A stays what it was. ``output`` is the head.

    Args:
        base: the base folder's ``config.json``.

    Raises:
        WeightsError: a key is no adapter's, or two go to one place.
    """
    if base.get("model_type") != "internlm2":
        return {_name(module, factor): tensor for module, factor, tensor in _factors(state)}
    mapped: dict[str, Tensor] = {}
    for module, factor, tensor in _factors(state):
        if internlm.is_wqkv(module):
            thirds = {part: tensor if factor == "A" else _deal(tensor, part, base, module) for part in "qkv"}
            placed = {_name(internlm.llama_qkv(module)[part], factor): third for part, third in thirds.items()}
        else:
            placed = {_name(internlm.llama_module(module), factor): tensor}
        if twice := placed.keys() & mapped.keys():
            raise WeightsError(f"two adapters go to {min(twice)}")
        mapped |= placed
    return mapped


def map_vision(state: dict[str, Tensor], used: int) -> dict[str, Tensor]:
    """A tower adapter's weights for the tower cut off after its used layers.

    transformers 4 had CLIP's modules below ``vision_model``. XTuner put adapters on the last layer too, which is never
    used and so was never trained: those are left out, but only where they add nothing.

    Args:
        used: layers that the tower keeps.

    Raises:
        WeightsError: a key is no adapter's, or an unused layer's adapter adds something.
    """
    mapped: dict[str, Tensor] = {}
    for module, factor, tensor in _factors(state):
        module = module.removeprefix("vision_model.")
        layer = _LAYER.match(module)
        if layer is None or int(layer[1]) < used:
            mapped[_name(module, factor)] = tensor
        elif factor == "B" and bool(tensor.any()):
            raise WeightsError(f"an adapter was trained on {module}, which the tower does not use: {used} layers are")
    return mapped


def load_xtuner_projector(projector: Projector, folder: Path, allow_pickle: bool = False) -> None:
    """Copy the weights of XTuner's ``projector/`` in.

    Raises:
        ConfigError: it holds none, or is no LLaVA-1.5 projector.
        WeightsError: a key is missing or left over, or a shape differs.
    """
    values = _read_json(folder / "config.json")
    wanted = {"depth": 2, "hidden_act": "gelu", "bias": True}
    if strange := [f"{key}: {values[key]}" for key, value in wanted.items() if values.get(key, value) != value]:
        raise ConfigError(f"the projector in {folder} is no linear, GELU, linear with biases ({', '.join(strange)})")
    state = {name: tensor.read().float() for name, tensor in stored(folder, allow_pickle=allow_pickle).items()}
    fill_projector(projector, state, str(folder))


def _language_config(folder: Path, language: str | None, quantize: str, allow_pickle: bool) -> dict[str, Any]:
    adapter = folder / "llm_adapter"
    more = {"quantize": quantize, "allow_pickle": allow_pickle}
    if adapter.is_dir():
        path = language or _peft_config(adapter).get("base_model_name_or_path")
        if not path:
            raise ConfigError(f"{adapter} does not name its base", "Name the base language model.")
        lora = adapter_lora(adapter, read_adapter(adapter, allow_pickle))
        return PartConfig(path=path, tuning="lora", lora=lora, **more).model_dump()  # type: ignore[arg-type]
    if (folder / "config.json").is_file():
        return PartConfig(path=str(folder), tuning="full", allow_pickle=allow_pickle).model_dump()
    if language is None:
        raise ConfigError(f"{folder} has no language model and names none", "Name the base language model.")
    return PartConfig(path=language, **more).model_dump()  # type: ignore[arg-type]


def _vision_config(folder: Path, vision: str, layer: int, allow_pickle: bool) -> dict[str, Any]:
    adapter, whole = folder / "visual_encoder_adapter", folder / "visual_encoder"
    if adapter.is_dir():
        config = VisionConfig(path=vision, tuning="lora", lora=adapter_lora(adapter), layer=layer)
    elif whole.is_dir():
        config = VisionConfig(path=str(whole), tuning="full", layer=layer)
    else:
        config = VisionConfig(path=vision, layer=layer)
    return {**config.model_dump(), "allow_pickle": allow_pickle}


def _factors(state: dict[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    for name, tensor in state.items():
        found = _KEY.fullmatch(name)
        if found is None:
            raise WeightsError(f"{name} is no LoRA factor's name, so it has no place in the model")
        yield found["module"], found["factor"], tensor


def _deal(factor: Tensor, part: str, base: dict[str, Any], module: str) -> Tensor:
    rows = {one: internlm.rows(base, one) for one in "qkv"}
    if len(factor) != (wanted := sum(map(len, rows.values()))):
        raise WeightsError(f"the adapter of {module} has {len(factor)} rows, but the base's heads make {wanted}")
    return factor[rows[part]]


def _name(module: str, factor: str) -> str:
    return adapter_key(f"{module}.lora_{factor}.weight")


def _base(path: str) -> dict[str, Any]:
    return read_config(path, KEY)


def _peft_config(folder: Path) -> dict[str, Any]:
    return _read_json(folder / "adapter_config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    return values
