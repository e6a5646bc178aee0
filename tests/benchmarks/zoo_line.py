"""Every kind of the zoo through the whole line on a CPU: ``python -m tests.benchmarks.zoo_line [STEPS]``.

Tiny random models in the layouts that their makers publish go through pretrain (projector, NF4 language model),
finetune (NF4 and LoRA, LoRA on the tower), convert, merge, chat, mmbench and refcoco, each by the command that a person
would type. Seconds of each, and what was scored. The finetuning learns the very rows and phrases that are scored, so
the scores show that the line carries what was learned to its end; of unseen pictures they say nothing.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from llava.evals.mmbench.prompt import choice_question
from llava.evals.refcoco.boxes import normalised
from llava.evals.refcoco.phrases import picture_question as grounding_question
from tests.llava.conftest import build_language, build_records, build_vision
from tests.llava.test_refcoco import records as phrases
from tests.llava.test_refcoco import write_pictures
from tests.llava.tiny_hf import some_rows, write_tsv
from tests.llava.tiny_zoo import build_kind, build_siglip

LLAVA = str(Path(sys.executable).with_name("llava"))
ROWS = (
    ("internlm2", "clip", "internlm2_chat"),
    ("llama", "clip", "vicuna"),
    ("phi3", "clip", "phi3_chat"),
    ("qwen3", "siglip", "qwen_chat"),
)
STEPS = 300
SHORTEST_PICTURE = 16
"""Characters; shorter cells name the row that holds the picture."""
STAGES = ("pretrain", "finetune", "convert", "merge", "chat", "mmbench", "refcoco")


def run(*command: str, cwd: Path) -> tuple[float, str]:
    """Run a command to its end; seconds and what it printed."""
    begun = time.monotonic()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "120"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return time.monotonic() - begun, done.stdout + done.stderr


def build(root: Path, kind: str, tower: str) -> tuple[Path, Path]:
    """The two bases of a row."""
    language, vision = root / "language", root / "vision"
    for folder in (language, vision):
        folder.mkdir(parents=True)
    build_language(language) if kind == "llama" else build_kind(language, kind)
    build_siglip(vision) if tower == "siglip" else build_vision(vision)
    if kind == "phi3":  # the tests' window of 20 tokens would hide most of a question from its answer
        config = json.loads((language / "config.json").read_text())
        (language / "config.json").write_text(json.dumps({**config, "sliding_window": 512}))
    return language, vision


def write_data(root: Path) -> Path:
    """Captions for the first stage; rows and phrases that are scored, and the records that teach them."""
    data = build_records(root / "data")
    rows = some_rows(6)
    write_tsv(data / "TINY_DEV.tsv", rows)
    write_pictures(data / "images")
    (data / "refcoco_val.json").write_text(json.dumps(phrases()))
    lessons = [*_choice_lessons(data, rows), *_grounding_lessons(data)]
    (data / "lessons.json").write_text(json.dumps(lessons))
    return data


def _choice_lessons(data: Path, rows: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    by_index = {row["index"]: row for row in rows}
    for row in rows:
        holder = row
        while len(holder["image"]) < SHORTEST_PICTURE:  # the number of another row
            holder = by_index[holder["image"]]
        name = f"row-{holder['index']}.png"
        (data / "images" / name).write_bytes(base64.b64decode(holder["image"]))
        options = {letter: row[letter] for letter in "ABCD" if row[letter]}
        yield _lesson(row["index"], name, choice_question(row["hint"], row["question"], options), row["answer"])


def _grounding_lessons(data: Path) -> Iterator[dict[str, Any]]:
    for number, one in enumerate(phrases()):
        (place,) = (data / "images").rglob(f"*{one['img_id'].split('_')[-2]}*")
        box = normalised(one["bbox"], one["height"], one["width"])
        asked = grounding_question(one["sents"])
        yield _lesson(f"phrase-{number}", str(place.relative_to(data / "images")), asked, box.text)


def _lesson(name: str, image: str, asked: str, told: str) -> dict[str, Any]:
    asked = "<image>\n" + asked.removeprefix("<image>\n")
    turn = [{"from": "human", "value": asked}, {"from": "gpt", "value": told}]
    return {"id": name, "image": image, "conversations": turn}


def train_config(root: Path, bases: tuple[Path, Path], template: str, stage: str, steps: int) -> Path:
    """Write the config of a stage: the recipes' methods, at the size of the models."""
    second = stage == "finetune"
    tuning = {"tuning": "lora", "lora": {"rank": 32, "alpha": 32, "dropout": 0.0}} if second else {"tuning": "frozen"}
    data = root / "data"
    values = {
        "kind": "train",
        "run_dir": str(root / stage),
        "model": {
            "template": template,
            "language": {"path": str(bases[0]), "quantize": "nf4", **tuning},
            "vision": {"path": str(bases[1]), **tuning},
            "projector": {"path": str(root / "pretrain/model")} if second else {},
        },
        "data": {
            "records": str(data / ("lessons.json" if second else "records.json")), "images": str(data / "images"),
            "max_length": 480, "workers": 0,
        },
        "train": {
            "global_batch": 8, "device_batch": 8, "max_steps": steps if second else steps // 10, "epochs": 10_000,
            "learning_rate": 5e-3, "device": "cpu", "log_every_steps": 50, "save_every_steps": 10_000,
        },
    }  # fmt: skip
    (root / stage).mkdir()
    path = root / stage / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def go(root: Path, kind: str, tower: str, template: str, steps: int) -> None:
    """Take one row through the line and print what it took and what it scored."""
    bases = build(root, kind, tower)
    data, took, said = write_data(root), dict[str, float](), dict[str, str]()
    commands: dict[str, list[str]] = {
        "convert": ["convert", "finetune/model", "hf", "--dtype", "fp32"],
        "merge": ["merge", "finetune/model", "merged"],
        "chat": ["chat", "hf", "What colour is it?", "--image", str(data / "images/000.png"), "--max-new-tokens", "16"],
        "mmbench": ["mmbench", "hf", str(data / "TINY_DEV.tsv"), "--scorer", "xtuner", "--work-dir", "mmbench"],
        "refcoco": ["refcoco", "hf", str(data / "refcoco_val.json"), "--images", str(data / "images"),
                    "--work-dir", "refcoco", "--max-new-tokens", "40"],
    }  # fmt: skip
    for stage in STAGES:
        if stage in ("pretrain", "finetune"):
            command = ["train", "--config", str(train_config(root, bases, template, stage, steps))]
        else:
            command = commands[stage]
        took[stage], said[stage] = run(LLAVA, *command, cwd=root)
    print(f"{kind} + {tower} ({template}): " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items()))
    for stage, words in (("mmbench", ("circular", "vanilla, every row")), ("refcoco", ("IoU", "all"))):
        lines = [line.strip("│┃ ") for line in said[stage].splitlines() if any(word in line for word in words)]
        print(f"  {stage}: " + "; ".join(re.sub(r"\s*│\s*", " ", line) for line in lines))
    print(f"  chat said: {said['chat'].splitlines()[0] if said['chat'].strip() else ''!r}", flush=True)


def main() -> None:
    """Take every row through the line."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    with tempfile.TemporaryDirectory() as name:
        for kind, tower, template in ROWS:
            go(Path(name) / kind, kind, tower, template, steps)


if __name__ == "__main__":
    main()
