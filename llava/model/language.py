"""The language model: any causal model that transformers loads, whole or in 4 bits, and its tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llava.errors import ConfigError, WeightsError
from llava.model import internlm, sentencepiece
from llava.model.shards import Stored, stored
from llava.model.weights import load_pretrained, load_tensors, local_folder, read_config

KEY = "model.language.path"

# Models whose logits are more than head(hidden); the loss here applies the head alone, at label positions.
_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def load_language(path: str, dtype: torch.dtype, quantization: Any, device: str, allow_pickle: bool = False) -> Any:
    """An ``AutoModelForCausalLM`` with its weights; InternLM and InternLM2 become Llama.

    Args:
        path: folder with the weights; the base, or a trained run's own.
        allow_pickle: read ``.bin`` files where there is no safetensors file.

    Raises:
        ConfigError: no such folder, no model in it, or one whose logits are more than its head's output.
        WeightsError: a weight is missing, left over or of another shape.
    """
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    if internlm.is_internlm(read_config(path, KEY)):
        config, tensors = language_config(path), llama_tensors(path, allow_pickle)
        model = load_tensors(LlamaForCausalLM, config, tensors, path, dtype, quantization, device, KEY)
    else:
        model = load_pretrained(AutoModelForCausalLM, path, dtype, quantization, device, KEY, allow_pickle=allow_pickle)
    changed = [name for name in _LOGIT_CHANGES if getattr(model.config, name, None) not in (None, 1.0)]
    if changed:
        raise ConfigError(f"model.language.path: {path} changes its logits after the head ({', '.join(changed)})")
    model.config.use_cache = False
    return model


def language_config(path: str) -> Any:
    """The config of the model that ``load_language`` makes of a folder: a ``LlamaConfig`` for InternLM and InternLM2.

    Raises:
        ConfigError: no such folder, or a model that transformers knows only with code of the folder's own.
    """
    from transformers import AutoConfig, LlamaConfig

    values = read_config(path, KEY)
    if internlm.is_internlm(values):
        return LlamaConfig(**internlm.llama_config(values))
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{KEY}: cannot read the config of {path}: {error}") from None


def llama_tensors(path: str, allow_pickle: bool = False) -> dict[str, Stored]:
    """A folder's tensors as they are on disk, InternLM's and InternLM2's under Llama's names; read one by one.

    Raises:
        ConfigError: no such folder or no weights in it.
        WeightsError: a file is torn or does not fit the config.
    """
    values = read_config(path, KEY)
    wanted = ["*.json", "*.safetensors", *(["*.bin"] if allow_pickle else [])]
    tensors = stored(local_folder(path, KEY, *wanted), allow_pickle=allow_pickle)
    return internlm.llama_tensors(tensors, values) if internlm.is_internlm(values) else tensors


def load_tokenizer(path: str) -> Any:
    """The folder's tokenizer, with the ids that the model was trained on.

    ``tokenizer.json`` is taken as it is: transformers 5 builds Llama's and others' anew by its own rules, which splits
    some texts differently (a leading space, text after a special token).

    Raises:
        ConfigError: there is none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = local_folder(path, KEY, "*.json", "*.model", "*.txt")
    try:
        if (folder / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(folder)
        if (folder / sentencepiece.FILE).is_file():
            return sentencepiece.load_sentencepiece(folder)
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer in {path}: {error}") from None


def nf4(compute: torch.dtype) -> Any:
    """4-bit NormalFloat with double quantisation (QLoRA, arXiv 2305.14314).

    Packed weights are stored in the compute type, so that ZeRO-3 and plain data parallelism treat them alike.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=compute,
    )


def check_nf4(model: Any, head: nn.Module | None, path: str) -> None:
    """Every linear layer but the head must be in 4 bits, and nothing else.

    Raises:
        WeightsError: a layer was left out, or the head was not (transformers ignores skip lists it cannot match).
    """
    from bitsandbytes.nn import Linear4bit

    wrong = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and isinstance(module, Linear4bit) != (module is not head)
    ]
    if wrong:
        raise WeightsError(f"4-bit loading of {path} went wrong for {', '.join(wrong[:5])}")
