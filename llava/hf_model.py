"""How is a Hugging Face LLaVA folder loaded and asked?

Any ``LlavaForConditionalGeneration`` folder works. One that ``llava convert`` wrote names its conversation template and
picture shape in ``llavajob.json``; another goes by its own chat template, or by the template that the caller names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llava.dialogue import Turn, encode_by_chat_template, encode_by_template
from llava.errors import ConfigError, WeightsError
from llava.generate import Stop, cut_at_words
from llava.templates import get

if TYPE_CHECKING:
    import torch
    from PIL import Image

Bits = Literal[4, 8]
MANIFEST = "llavajob.json"
"""What a folder written by convert says about itself beyond Hugging Face's files."""
_PARTS_KEPT_WHOLE = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
"""Full names: transformers 5 ignores bare ones, and the projector would go into 4 bits unnoticed."""


@dataclass(frozen=True)
class HfLlava:
    """A loaded model with everything that turns questions into embeddings and tokens into text."""

    model: Any
    tokenizer: Any
    image_processor: Any
    template: str | None
    """Our template's name; None: the folder's chat template."""
    square: str
    stop: Stop
    dtype: str
    """fp32, bf16 or fp16."""

    def pixels(self, pictures: list[Image.Image]) -> torch.Tensor:
        """Make pictures square and normalise them, on the CPU.

        Returns:
            [pictures, 3, side, side] in fp32.
        """
        from llava.data.images import pad

        if self.square == "pad":
            colour = tuple(int(255 * value) for value in self.image_processor.image_mean)
            pictures = [pad(picture, colour) for picture in pictures]
        values: torch.Tensor = self.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return values

    def encode_pixels(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Run the vision tower and the projector.

        Returns:
            one tensor [picture tokens, hidden] for each picture.
        """
        import torch

        with torch.inference_mode():
            output = self.model.get_image_features(pixels.to(self.model.device, self.model.dtype), return_dict=True)
        return list(output.pooler_output)

    def chunks(self, turns: list[Turn]) -> list[list[int]]:
        """Token ids of a conversation whose last turn waits for its answer, split where pictures belong."""
        if self.template is None:
            return encode_by_chat_template(turns, self.tokenizer)
        return encode_by_template(turns, self.tokenizer, self.template)

    def embed(self, chunks: list[list[int]], pictures: list[torch.Tensor]) -> torch.Tensor:
        """Splice pictures between chunks.

        Returns:
            embeddings [length, hidden].
        """
        import torch

        if len(pictures) != len(chunks) - 1:
            raise ValueError(f"{len(pictures)} pictures for {len(chunks) - 1} places")
        with torch.inference_mode():
            look_up = self.model.get_input_embeddings()
            texts = [look_up(torch.tensor(ids, dtype=torch.long, device=self.model.device)) for ids in chunks]
            parts = [texts[0]]
            for picture, text in zip(pictures, texts[1:], strict=True):
                parts += [picture.to(text.dtype), text]
            return torch.cat(parts)

    def decode(self, tokens: list[int]) -> str:
        """Text without special tokens, not yet cut at stop words."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def answer_text(self, tokens: list[int]) -> str:
        """The answer as it is stored: without special tokens, stop words and outer blanks."""
        return cut_at_words(self.decode(tokens), self.stop.words).strip()


def load(
    path: str | Path,
    device: str = "auto",
    precision: str = "auto",
    template: str | None = None,
    bits: Bits | None = None,
) -> HfLlava:
    """Load a folder onto this process's device.

    Args:
        path: a LlavaForConditionalGeneration folder with tokenizer and image processor.
        device: auto, cpu or cuda.
        precision: auto, fp32, bf16 or fp16.
        template: overrides the template that the folder names.
        bits: language model in 4 bits (NF4) or 8 (LLM.int8); None: whole.

    Raises:
        ConfigError: no such folder, device or template, or no bitsandbytes for fewer bits.
        WeightsError: weights are missing, left over or of another shape.
    """
    folder = checked_folder(path)  # before the slow imports
    from llava.hf_device import dtype_name, local_device, torch_dtype
    from llava.model.language import load_tokenizer
    from llava.model.vision import load_processor

    place = local_device(device)
    dtype = dtype_name(precision, place)
    model = _load_weights(folder, place, torch_dtype(dtype), bits)
    tokenizer = load_tokenizer(str(folder))
    manifest = read_manifest(folder)
    name = template or manifest.get("template")
    if name is None and not tokenizer.chat_template:
        raise ConfigError(f"{folder} names no conversation template", "Name one: --template vicuna, for example.")
    return HfLlava(
        model,
        tokenizer,
        load_processor(str(folder)),
        name,
        manifest.get("square", "pad"),
        _stop(model, tokenizer, name),
        dtype,
    )


def checked_folder(path: str | Path) -> Path:
    """Refuse a path that is no LLaVA folder before anything heavy is imported."""
    folder = Path(path)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is no Hugging Face model folder: {error}", "`llava convert` writes one.") from None
    if config.get("model_type") != "llava":
        raise ConfigError(
            f"{folder} holds a model of type {config.get('model_type')!r}, not 'llava'",
            "Turn a training run's model folder into one with `llava convert`.",
        )
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """What convert wrote about the folder; empty for a folder from elsewhere."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    return values if isinstance(values, dict) else {}


def template_of(folder: str | Path, override: str | None) -> str:
    """Name of the template that a model will be asked with; "chat_template" for the folder's own."""
    return override or str(read_manifest(Path(folder)).get("template") or "chat_template")


def _load_weights(folder: Path, place: torch.device, dtype: torch.dtype, bits: Bits | None) -> Any:
    from transformers import LlavaForConditionalGeneration

    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "output_loading_info": True}
    if bits is not None:
        options["quantization_config"] = _quantization(bits, dtype)
    if place.type == "cuda":
        options["device_map"] = {"": place}  # straight to the GPU, without a copy in the host's memory
    try:
        model, report = LlavaForConditionalGeneration.from_pretrained(folder, **options)
    except ImportError as error:
        raise ConfigError(f"cannot load {folder} in {bits} bits: {error}", _NEEDS_BITSANDBYTES) from None
    except (RuntimeError, OSError, ValueError) as error:
        raise WeightsError(f"cannot load {folder}: {error}") from None
    wrong = [f"{kind} {sorted(map(str, report[kind]))}" for kind in _KINDS if report.get(kind)]
    if wrong:
        raise WeightsError(f"the weights in {folder} do not fit its config: {'; '.join(wrong)}")
    if bits is not None:
        _check_quantised(model, bits)
    return model.eval()


_KINDS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
_NEEDS_BITSANDBYTES = "4 and 8 bits need the package bitsandbytes, on CPU too: pip install 'bitsandbytes>=0.49'"
_LAYERS: dict[Bits, str] = {4: "Linear4bit", 8: "Linear8bitLt"}


def _quantization(bits: Bits, dtype: torch.dtype) -> Any:
    """4: NF4 with double quantisation; 8: LLM.int8 (Dettmers et al., arXiv 2208.07339), outliers above 6 kept whole."""
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"cannot load in {bits} bits: bitsandbytes is not installed", _NEEDS_BITSANDBYTES)
    whole = list(_PARTS_KEPT_WHOLE)
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0, llm_int8_skip_modules=whole)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole,
    )


def _check_quantised(model: Any, bits: Bits) -> None:
    names = [name for name, module in model.named_modules() if type(module).__name__ == _LAYERS[bits]]
    strange = [name for name in names if not name.startswith("model.language_model.")]
    if strange or not names:
        raise WeightsError(f"{bits}-bit loading reached the wrong layers: {strange[:3] or 'none at all'}")


def _stop(model: Any, tokenizer: Any, template: str | None) -> Stop:
    ends = model.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    words = []
    for word in get(template).stop_words if template else ():
        tokens = tokenizer.encode(word, add_special_tokens=False)
        if len(tokens) == 1 and tokens[0] != tokenizer.unk_token_id:
            ids.add(tokens[0])
        else:
            words.append(word)
    return Stop(frozenset(ids), tuple(words))
