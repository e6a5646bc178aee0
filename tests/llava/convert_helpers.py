"""Trained runs that were never trained, converted, and asked by transformers alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava.config import ConvertJob, ModelConfig
from llava.convert import convert_job
from llava.data.collate import IMAGE_TOKEN, Sample, collate
from llava.data.images import prepare
from llava.dialogue import Turn, encode_by_template
from llava.model.load import Loaded, build, save_trained, trainable

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
CLOSE = 1e-5


def train(
    folder: Path,
    language: Path,
    vision: Path,
    kind: tuple[str, str, str],
    template: str = "vicuna",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A run's model folder, with every trained weight moved off its start."""
    config = ModelConfig.model_validate(
        {
            "template": template,
            "language": {"path": str(language), "tuning": kind[0], "lora": LORA, "quantize": kind[2]},
            "vision": {"path": str(vision), "tuning": kind[1], "lora": LORA},
        }
    )
    loaded = build(config, dtype, seed=4)
    generator = torch.Generator().manual_seed(8)
    state = {
        name: (p.detach() + 0.1 * torch.randn(p.shape, generator=generator)).float()
        for name, p in trainable(loaded.model).items()
    }
    save_trained(dataclasses.replace(loaded, step=9, square="pad"), state, folder)
    return folder


def convert(output: Path, **values: Any) -> Path:
    wanted = {"output": str(output), "dtype": "fp32", **{k: str(v) for k, v in values.items()}}
    convert_job(ConvertJob.model_validate({"kind": "convert", "run_dir": str(output.parent), "convert": wanted}))
    return output


def picture() -> Image.Image:
    image = Image.new("RGB", (50, 31), (200, 40, 40))
    image.paste((20, 90, 200), (5, 4, 30, 20))
    return image


@torch.no_grad()
def our_logits(loaded: Loaded, question: str) -> torch.Tensor:
    """[length, vocabulary] by the trained model, as training lays a sample out."""
    # In eval mode bitsandbytes computes in bf16 on CPUs that have it, whatever format was asked for.
    loaded.model.train()
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    chunks = encode_by_template([Turn(question)], loaded.tokenizer, loaded.config.template)
    ids = torch.tensor([*chunks[0], IMAGE_TOKEN, *chunks[1]], dtype=torch.int32).numpy()
    pixels = prepare(picture(), loaded.processor, loaded.square)
    batch = collate([Sample(ids, ids, pixels)], loaded.model.vision.patches, loaded.model.vision.side)
    hidden = loaded.model.read(batch, loaded.model.projector(loaded.model.vision(batch.pixels)))
    logits: torch.Tensor = loaded.model.language.get_output_embeddings()(hidden)
    return logits


@torch.no_grad()
def their_logits(folder: Path, question: str) -> torch.Tensor:
    """The same by transformers alone: processor, chat template, model."""
    processor = AutoProcessor.from_pretrained(folder)
    model, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=picture(), text=text, return_tensors="pt", add_special_tokens=False)
    logits: torch.Tensor = model(**inputs).logits[0]
    return logits
