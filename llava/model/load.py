"""Building the model: from a config's bases, or from a trained run's ``model`` folder.

The folder::

    llava.json            format, template, vision_layer, square, step, versions; language and vision:
                          {path, tuning, quantize, lora}
    projector/            config.json, model.safetensors (linear_1.*, linear_2.*)
    language_adapter/     PEFT folder, where the part was tuned with LoRA
    vision_adapter/
    language/             Hugging Face folder with tokenizer, where the part was tuned in full
    vision/               Hugging Face folder with image processor
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llava.config import LoraConfig, ModelConfig, PartConfig, VisionConfig
from llava.disk import disk_errors, sync
from llava.errors import ConfigError, WeightsError
from llava.model.adapters import add_lora, load_adapter, save_adapter
from llava.model.join import LlavaModel
from llava.model.language import check_nf4, load_language, load_tokenizer, nf4
from llava.model.projector import Projector, load_projector, save_projector
from llava.model.vision import VisionTower, load_processor, load_vision, output_size

MANIFEST = "llava.json"
FORMAT = 1
Square = Literal["crop", "pad"]


_FORMATS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Loaded:
    """A model with what belongs to it."""

    model: LlavaModel
    tokenizer: Any
    processor: Any
    config: ModelConfig
    square: Square = "pad"
    """How pictures are made square."""
    step: int = 0
    """Updates the weights have had."""
    dtype: torch.dtype = torch.float32
    """What frozen weights were held in, and 4-bit ones quantised from."""


def build(config: ModelConfig, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Loaded:
    """The model that a config describes, ready to train.

    Frozen weights and the bases under adapters are held in ``dtype``; what trains is float32.

    Args:
        device: where everything goes.
        seed: of the projector's and the adapters' first weights.

    Raises:
        ConfigError: a folder is missing or of another kind.
        WeightsError: a weight is missing, left over or of another shape.
    """
    vision, processor = vision_part(config.vision, config.vision.path, dtype, device, seed)
    language = language_part(config.language, config.language.path, dtype, device, seed)
    torch.manual_seed(seed)
    projector = Projector(vision.width, language.config.hidden_size)
    if config.projector.path is not None:
        load_projector(projector, config.projector.path)
    projector.requires_grad_(config.projector.tuning == "full")
    model = LlavaModel(vision, projector, language).to(device)
    return Loaded(model, load_tokenizer(config.language.path), processor, config, dtype=dtype)


def load_trained(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu", *, original: bool = False
) -> Loaded:
    """The model of a finished run, with its adapters and fully tuned parts in place, in eval mode.

    Args:
        folder: the run's ``model`` folder.
        original: load the bases unquantised even where the run had them in 4 bits.

    Raises:
        ConfigError: no such folder, or a base that it names is missing.
        WeightsError: a weight is missing, left over or of another shape.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    config = _config_of(manifest, original)
    paths = {
        part: str(folder / part) if getattr(config, part).tuning == "full" else getattr(config, part).path
        for part in ("vision", "language")
    }
    vision, processor = vision_part(config.vision, paths["vision"], dtype, device, 0)
    language = language_part(config.language, paths["language"], dtype, device, 0)
    if config.vision.tuning == "lora":
        load_adapter(vision.clip, folder / "vision_adapter")
    if config.language.tuning == "lora":
        load_adapter(language, folder / "language_adapter")
    projector = Projector(vision.width, language.config.hidden_size)
    load_projector(projector, folder)
    model = LlavaModel(vision, projector, language).to(device).requires_grad_(False).eval()
    tokenizer = load_tokenizer(paths["language"])
    return Loaded(model, tokenizer, processor, config, manifest["square"], manifest["step"])


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What ``llava.json`` in a trained run's ``model`` folder says.

    Raises:
        ConfigError: it is missing, unreadable, or of a format this version does not know.
    """
    file = Path(folder) / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no trained model in {folder}: {MANIFEST} is missing", "give a run's model folder") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from None
    if manifest.get("format") != FORMAT:
        raise ConfigError(f"{file} has format {manifest.get('format')}; this version reads format {FORMAT}")
    return manifest


def save_trained(loaded: Loaded, state: dict[str, Tensor], folder: Path) -> None:
    """Write the ``model`` folder aside and move it in place.

    Args:
        loaded: the model with its square and step set.
        state: every trained weight by its name in the model, whole and in float32.

    Raises:
        OSError: disk full, read-only, ...; what was written aside is gone again.
    """
    aside = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with disk_errors(aside):
            _write(loaded, state, aside)
        for path in (*aside.rglob("*"), aside):
            sync(path)
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def versions() -> dict[str, str]:
    """Versions of the packages that weights depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("llavajob", "torch", "transformers", "peft", "bitsandbytes", "deepspeed"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def vision_part(config: VisionConfig, path: str, dtype: torch.dtype, device: str, seed: int) -> tuple[VisionTower, Any]:
    """The tower, ready to train as its config says, and its image processor.

    Args:
        path: folder with its weights.
        seed: of its adapters' first weights.

    Raises:
        ConfigError: the folder is missing or of another kind.
        WeightsError: a weight is missing, left over or of another shape.
    """
    processor = load_processor(path)
    quantization = nf4(dtype) if config.quantize == "nf4" else None
    clip = load_vision(config, path, _held_in(config, dtype), quantization, device, config.allow_pickle)
    _check_side(processor, clip.config.image_size, path)
    tower = VisionTower(clip, config.layer, list(processor.image_mean), list(processor.image_std))
    if quantization is not None:
        check_nf4(clip, None, path)
    _tune(clip, config, seed, len(clip.encoder.layers))
    if config.tuning == "full":  # it comes after the layers that are used, so it would never get a gradient
        clip.post_layernorm.requires_grad_(False)
    return tower, processor


def language_part(config: PartConfig, path: str, dtype: torch.dtype, device: str, seed: int) -> Any:
    """The language model, likewise."""
    quantization = nf4(dtype) if config.quantize == "nf4" else None
    language = load_language(path, _held_in(config, dtype), quantization, device, config.allow_pickle)
    if quantization is not None:
        check_nf4(language, language.get_output_embeddings(), path)
    _tune(language, config, seed + 1, None)
    return language


def _tune(part: Any, config: PartConfig, seed: int, layers: int | None) -> None:
    if config.tuning == "lora":
        torch.manual_seed(seed)
        add_lora(part, config.lora, layers)
    else:
        part.requires_grad_(config.tuning == "full")


def _held_in(config: PartConfig, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if config.tuning == "full" else dtype


def _check_side(processor: Any, side: int, path: str) -> None:
    if output_size(processor) != (side, side):
        raise ConfigError(
            f"the image processor in {path} does not make pictures of {side} x {side}, which the tower takes: "
            f"size {dict(processor.size)}, crop_size {dict(getattr(processor, 'crop_size', None) or {})}"
        )


def _config_of(manifest: dict[str, Any], original: bool) -> ModelConfig:
    def part(name: str) -> dict[str, Any]:
        values = {key: value for key, value in manifest[name].items() if value is not None}
        return {**values, **({"quantize": "none"} if original else {})}

    try:
        return ModelConfig(
            template=manifest["template"],
            language=PartConfig(**part("language")),
            vision=VisionConfig(**part("vision"), layer=manifest["vision_layer"]),
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{MANIFEST} is damaged: {error}") from None


def _write(loaded: Loaded, state: dict[str, Tensor], folder: Path) -> None:
    model, config = loaded.model, loaded.config
    projector = {name: tensor.detach() for name, tensor in model.projector.state_dict().items()}
    projector.update(_below(state, "projector."))
    save_projector(model.projector, projector, folder / "projector")
    if config.language.tuning == "lora":
        save_adapter(model.language, _below(state, "language."), folder / "language_adapter")
    elif config.language.tuning == "full":
        _save_full(model.language, _below(state, "language."), folder / "language")
        loaded.tokenizer.save_pretrained(folder / "language")
    if config.vision.tuning == "lora":
        save_adapter(model.vision.clip, _below(state, "vision.clip."), folder / "vision_adapter")
    elif config.vision.tuning == "full":
        with model.vision.whole() as clip:
            _save_full(clip, _below(state, "vision.clip."), folder / "vision")
        loaded.processor.save_pretrained(folder / "vision")
    manifest = {
        "format": FORMAT,
        "template": config.template,
        "vision_layer": config.vision.layer,
        "square": loaded.square,
        "step": loaded.step,
        "dtype": _FORMATS[loaded.dtype],
        "language": _part(config.language),
        "vision": _part(config.vision),
        "versions": versions(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _save_full(model: Any, trained: dict[str, Tensor], folder: Path) -> None:
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if unknown := trained.keys() - state.keys():
        raise WeightsError(f"trained weights that the model lacks: {', '.join(sorted(unknown)[:5])}")
    # Tied weights stand in the state under every name, but train under one.
    tied = {id(p): trained[name] for name, p in model.named_parameters() if name in trained}
    by_name = dict(model.named_parameters(remove_duplicate=False))
    for name in state:
        if name in by_name and id(by_name[name]) in tied:
            state[name] = tied[id(by_name[name])]
    model.save_pretrained(folder, state_dict=state)


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t.contiguous() for name, t in state.items() if name.startswith(prefix)}


def _part(config: PartConfig) -> dict[str, Any]:
    path = str(Path(config.path).resolve()) if Path(config.path).is_dir() else config.path
    return {
        "path": path,
        "tuning": config.tuning,
        "quantize": config.quantize,
        "lora": LoraConfig.model_dump(config.lora) if config.tuning == "lora" else None,
        "allow_pickle": config.allow_pickle,
    }


def tuned(loaded: Loaded) -> dict[str, Tensor]:
    """What has been trained of a loaded model, by name: what ``save_trained`` writes beside the bases' names."""
    found: dict[str, Tensor] = {}
    for part, module in loaded.model.parts().items():
        tuning = "full" if part == "projector" else getattr(loaded.config, part).tuning
        for name, parameter in module.named_parameters():
            if tuning == "full" or (tuning == "lora" and ".lora_" in name):
                found[f"{part}.{name}"] = parameter.detach()
    return found


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by name, in the module's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
