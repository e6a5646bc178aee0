"""A tiny LLaVA folder, written with transformers alone, and a small benchmark file with drawn pictures."""

from __future__ import annotations

import base64
import csv
import io
import json
import random
from pathlib import Path
from typing import Any

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "white": (240, 240, 240)}
COLUMNS = [
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
]


def build_llava(folder: Path, language: Path, vision: Path, manifest: dict[str, Any] | None = None) -> Path:
    """Join two tiny bases with a random projector; weights random enough that answers differ."""
    import torch
    from transformers import (
        CLIPVisionModel,
        LlamaForCausalLM,
        LlavaConfig,
        LlavaForConditionalGeneration,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = PreTrainedTokenizerFast.from_pretrained(language)
    text, tower = LlamaForCausalLM.from_pretrained(language), CLIPVisionModel.from_pretrained(vision)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text.config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    torch.manual_seed(5)
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    for parameter in model.model.multi_modal_projector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil.from_pretrained(vision).save_pretrained(folder)
    if manifest is not None:
        (folder / "llavajob.json").write_text(json.dumps(manifest))
    return folder


def picture(number: int) -> str:
    """A drawn picture as base64 PNG: a square of one colour on a grey ground, never the same twice."""
    from PIL import Image, ImageDraw

    rng = random.Random(number)
    image = Image.new("RGB", (rng.randint(24, 60), rng.randint(24, 60)), (90, 90, rng.randint(0, 255)))
    corner = rng.randint(0, 12)
    ImageDraw.Draw(image).rectangle([corner, corner, corner + 14, corner + 14], list(COLOURS.values())[number % 4])
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def question_rows(number: int, options: list[str], answer: int = 0, **changes: str) -> list[dict[str, str]]:
    """All circular copies of a question; copies refer to the main row's picture."""
    rows = []
    for k in range(len(options)):
        shifted = options[k:] + options[:k]
        row = dict.fromkeys(COLUMNS, "")
        row |= {
            "index": str(number + k * 1_000_000),
            "question": f"What colour is it number {number}?",
            "answer": "ABCDEFGH"[(answer - k) % len(options)],
            "category": "colour" if number % 2 else "count",
            "l2-category": "perception" if number % 3 else "reasoning",
            "image": str(number) if k else picture(number),
            "source": "drawn",
            "split": "dev",
            **dict(zip("ABCDEFGH", shifted, strict=False)),
            **changes,
        }
        rows.append(row)
    return rows


def some_rows(questions: int = 10) -> list[dict[str, str]]:
    """Questions of two to four options and different lengths; every fifth shares an earlier question's picture."""
    rows: list[dict[str, str]] = []
    for number in range(questions):
        options = list(COLOURS)[: 2 + number % 3]
        hint = "It is " + "very " * (number % 7) + "late." if number % 4 == 1 else ""
        asked = question_rows(number, options, answer=number % len(options), hint=hint)
        if number % 5 == 4:
            asked[0]["image"] = str(number - 1)
        rows += asked
    # All main rows first, then all first copies, as in the real files.
    return sorted(rows, key=lambda row: int(row["index"]))


def write_tsv(path: Path, rows: list[dict[str, str]], columns: list[str] | None = None) -> Path:
    """Write rows as the benchmark's files are written: tab-separated, quoted where needed."""
    columns = columns or COLUMNS
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
