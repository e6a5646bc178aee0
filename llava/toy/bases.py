"""How the quickstart's base models come to be: a tokenizer, a small Llama and a small CLIP tower, in about a minute.

They stand for downloaded weights: ordinary Hugging Face folders, ``language/`` and ``vision/``, which know words and
pictures but have never met. The language model has read texts only; the tower has seen only the pictures to learn
from and the words of their captions.

What makes so short a training possible: weights drawn with variance 1/inputs, since transformers' 0.02 is made for
wide models; the Muon optimiser for matrices (Jordan et al. 2024, ``torch.optim.Muon``); losses on answers only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import multiprocessing
import os
import queue
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from llava.toy import words
from llava.toy.draw import SIDE, Report

log = logging.getLogger("llava.toy")

WIDTH = 128
"""Width of both models."""
LANGUAGE_LAYERS = 3
VISION_LAYERS = 5
"""One more than is trained: LLaVA reads the second to last hidden state, so the last layer stays as drawn."""
HEADS = 4
PATCH = 16
"""Pixels a patch is wide: 16 patches a picture."""
READ_PATCHES = 4
"""How many patches, other ones each step, the tower's words are read from: so every patch comes to know the picture."""
KEY_FILE = "bases.json"


@dataclass(frozen=True)
class Effort:
    """How long the bases learn: updates, and texts or pictures an update."""

    language_steps: int = 200
    language_batch: int = 32
    vision_steps: int = 500
    vision_batch: int = 64


def build_bases(
    folder: str | Path,
    data_folder: str | Path,
    seed: int,
    cache: str | Path | None = None,
    report: Report | None = None,
    effort: Effort | None = None,
) -> None:
    """Train and save ``folder/language`` and ``folder/vision``, or take them from where they already are.

    Args:
        folder: where the two Hugging Face folders go.
        data_folder: what :func:`llava.toy.draw.draw_data` wrote; only pretrain.json and its pictures are read.
        seed: of the weights, the texts and the order of the pictures.
        cache: folder of finished bases, one folder a key; None: only ``folder`` itself is looked at. It only saves
            time: one that cannot be read or written is done without.
        report: told (step, total steps, metrics) now and then, over both models together.
        effort: how long they learn; None: long enough for the quickstart.
    """
    effort = effort if effort is not None else Effort()
    folder, key = Path(folder), bases_key(Path(data_folder), seed, effort)
    if _complete(folder, key):
        return
    kept = Path(cache) / key if cache else None
    if kept is not None and _complete(kept, key) and _copied(kept, folder):
        return
    aside = _aside(folder)
    aside.mkdir(parents=True, exist_ok=True)
    _train_both(aside, Path(data_folder), seed, effort, report)
    (aside / KEY_FILE).write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
    _move(aside, folder)
    if kept is not None and not _complete(kept, key):
        _copied(folder, kept)


def _copied(source: Path, target: Path) -> bool:
    """Copy finished bases into the cache or out of it; False, and a warning, where that cannot be done."""
    aside = _aside(target)
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, aside)
        _move(aside, target)
    except OSError as error:
        log.warning("the cache of base models is not used (toy.cache): %s", error)
        shutil.rmtree(aside, ignore_errors=True)
        return False
    return True


def _aside(folder: Path) -> Path:
    """A folder beside another, to write what is moved there once it is complete."""
    return folder.with_name(f".{folder.name}.{os.getpid()}")


def bases_key(data_folder: Path, seed: int, effort: Effort) -> str:
    """What finished bases are told apart by: seed, effort, captions, this package's source, library versions."""
    digest = hashlib.sha256()
    digest.update(f"{seed} {effort}".encode())
    for name in ("torch", "transformers", "tokenizers", "pillow"):
        digest.update(version(name).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    digest.update((data_folder / "pretrain.json").read_bytes())
    return digest.hexdigest()[:16]


def _complete(folder: Path, key: str) -> bool:
    try:
        return bool(json.loads((folder / KEY_FILE).read_text(encoding="utf-8"))["key"] == key)
    except (OSError, ValueError, KeyError):
        return False


def _move(aside: Path, target: Path) -> None:
    # A folder cannot be replaced while it holds something. Only bases of another key make way: they are whole, since
    # the key travels with them; anything else is somebody's and stays.
    if (target / KEY_FILE).is_file():
        shutil.rmtree(target)
    os.replace(aside, target)


def _train_both(folder: Path, data_folder: Path, seed: int, effort: Effort, report: Report | None) -> None:
    """Train the two models at the same time, each in a process of one thread.

    On two cores that is as quick as one after the other with two threads, keeps its pace where other work shares the
    cores (two threads wait for each other at every operation), and gives the same weights on any number of cores.
    """
    context = multiprocessing.get_context("spawn")
    said: Any = context.Queue()
    parts = [
        context.Process(target=work, args=(folder, data_folder, seed, effort, said), daemon=True)
        for work in (_make_language, _make_vision)
    ]
    for part in parts:
        part.start()
    try:
        _follow(parts, said, effort, report)
    finally:
        for part in parts:
            part.terminate()
            part.join()


def _follow(parts: Sequence[Any], said: Any, effort: Effort, report: Report | None) -> None:
    """Pass on what the two processes say until both have ended well.

    Raises:
        RuntimeError: one of them ended otherwise; its traceback stands on standard error.
    """
    total, steps = effort.language_steps + effort.vision_steps, {"language": 0, "vision": 0}
    while any(part.is_alive() for part in parts) or not said.empty():
        if any(part.exitcode for part in parts):
            break
        try:
            name, step, metrics = said.get(timeout=0.2)
        except queue.Empty:
            continue
        steps[name] = step
        if report is not None:
            report(sum(steps.values()), total, metrics)
    if any(part.exitcode for part in parts):
        raise RuntimeError(f"a base model could not be built: exit codes {[part.exitcode for part in parts]}")


def _make_language(folder: Path, data_folder: Path, seed: int, effort: Effort, said: Any) -> None:
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    model = train_language(tokenizer, seed, effort, lambda step, of, metrics: said.put(("language", step, metrics)))
    model.save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")


def _make_vision(folder: Path, data_folder: Path, seed: int, effort: Effort, said: Any) -> None:
    torch.set_num_threads(1)
    processor = build_processor()
    pictures, labels = read_captioned(data_folder, processor)
    model = train_vision(pictures, labels, seed, effort, lambda step, of, metrics: said.put(("vision", step, metrics)))
    model.save_pretrained(folder / "vision")
    processor.save_pretrained(folder / "vision")


# Tokenizer


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer: every word of this world is one token, an unknown word falls into its letters."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.Split(Regex(r" +"), "removed"),
            pre_tokenizers.Split(Regex(r"[A-Z]+[:.]|\w+|[^\w\s]"), "isolated"),
        ]
    )
    known = sorted({piece for text in _texts() for piece, _ in split.pre_tokenize_str(text)})
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys([*known, *letters, *("##" + one for one in letters)])]
    inner = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    inner.pre_tokenizer = split
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=2048,
    )
    # The instruction ends every question; as one token it costs a tiny model no more than it tells.
    tokenizer.add_tokens([words.INSTRUCTION])
    return tokenizer


def _texts() -> list[str]:
    """Texts that hold every word of this world; plural forms are left to their pieces (circle, ##s)."""
    scene = words.Scene("circle", "red", "white", "left", 1, "CAT")
    said = ["USER: ASSISTANT:", words.DESCRIBE, *words.parts(scene)]
    for family in words.FAMILIES:
        options = "\n".join(f"{letter}. x" for letter in words.LETTERS)
        said += [family.hint, family.question, options, " ".join(family.pool), " ".join(words.LETTERS)]
    return said


# Language model


def train_language(tokenizer: PreTrainedTokenizerFast, seed: int, effort: Effort, report: Report) -> LlamaForCausalLM:
    """A Llama that reads descriptions, repeats them in order, and answers questions about them."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=math.ceil(len(tokenizer) / 64) * 64,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=LANGUAGE_LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=2048,
            initializer_range=WIDTH**-0.5,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    rng = random.Random(f"{seed}/reading")

    def loss() -> tuple[Tensor, float]:
        rows = [encode(tokenizer, words.reading_turns(rng)) for _ in range(effort.language_batch)]
        ids, labels = (_pad([row[part] for row in rows], fill) for part, fill in ((0, 0), (1, -100)))
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        # The head is applied only where something is to be said.
        logits = model.lm_head(hidden[wanted != -100])
        wanted = wanted[wanted != -100]
        return cross_entropy(logits, wanted), _share(logits, wanted)

    _optimise(list(model.named_parameters()), loss, effort.language_steps, "language", report)
    return model


def encode(tokenizer: PreTrainedTokenizerFast, turns: words.Turns) -> tuple[list[int], list[int]]:
    """Tokens and labels of a conversation in the vicuna template without system prompt; -100: nothing to learn."""
    ids: list[int] = []
    labels: list[int] = []
    newline = tokenizer.encode("\n", add_special_tokens=False)
    for question, answer in turns:
        asked = [tokenizer.bos_token_id, *tokenizer.encode(f"USER: {question} ASSISTANT:", add_special_tokens=False)]
        said = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
        ids += [*asked, *said, *newline]
        labels += [-100] * len(asked) + said + [-100] * len(newline)
    return ids, labels


def _pad(rows: Sequence[list[int]], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


# Vision tower


def build_processor() -> CLIPImageProcessorPil:
    """CLIP's image processor at this world's picture size."""
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


LABELS = (words.SHAPES, words.COLOURS, words.GROUNDS, words.PLACES, words.NUMBERS[:4], words.WORDS)
"""Groups of words of which every caption holds exactly one each."""


def read_captioned(data_folder: Path, processor: CLIPImageProcessorPil) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, side, side) and, from their captions, the word of each group (count, groups)."""
    rows = json.loads((data_folder / "pretrain.json").read_text(encoding="utf-8"))
    pictures, labels = [], []
    for row in rows:
        with Image.open(data_folder / "images" / row["image"]) as image:
            pictures.append(processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0])
        said = row["conversations"][1]["value"].replace(",", " ").replace(".", " ").split()
        # A plural counts as its word.
        heard = {*said, *(word[:-1] for word in said)}
        labels.append([next(i for i, word in enumerate(group) if word in heard) for group in LABELS])
    return torch.stack(pictures), torch.tensor(labels)


def train_vision(pictures: Tensor, labels: Tensor, seed: int, effort: Effort, report: Report) -> CLIPVisionModel:
    """A CLIP tower that tells the words of a picture's caption.

    Words of captions as classes, instead of whole captions against each other, are the quicker way to a tower
    (Joulin et al., arXiv 1511.02251; Huang et al., arXiv 2411.03313). The classes are read from the mean of the
    patches' second to last hidden state, which is what LLaVA uses.
    """
    torch.manual_seed(seed)
    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=VISION_LAYERS,
            num_attention_heads=HEADS,
            image_size=SIDE,
            patch_size=PATCH,
        )
    )
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    heads = nn.Linear(WIDTH, sum(map(len, LABELS)))
    order = torch.Generator().manual_seed(seed)

    def loss() -> tuple[Tensor, float]:
        chosen = torch.randint(len(pictures), (effort.vision_batch,), generator=order)
        hidden = model(pictures[chosen], output_hidden_states=True).hidden_states[-2][:, 1:]
        some = torch.randperm(hidden.shape[1], generator=order)[:READ_PATCHES]
        split = heads(layer_norm(hidden[:, some].mean(1), (WIDTH,))).split([len(group) for group in LABELS], 1)
        pairs = list(zip(split, labels[chosen].T, strict=True))
        right = sum(_share(logits, wanted) for logits, wanted in pairs) / len(pairs)
        return sum((cross_entropy(logits, wanted) for logits, wanted in pairs), torch.zeros(())), right

    named = [*model.named_parameters(), *(("heads." + name, weight) for name, weight in heads.named_parameters())]
    _optimise(named, loss, effort.vision_steps, "vision", report)
    return model


# Both


def _optimise(
    named: list[tuple[str, nn.Parameter]],
    loss: Callable[[], tuple[Tensor, float]],
    steps: int,
    name: str,
    report: Report,
) -> None:
    """Muon for the layers' matrices, AdamW for the rest; the rate falls to zero over the second half."""
    matrices = [weight for path, weight in named if weight.dim() == 2 and "layers." in path]
    others = [weight for path, weight in named if not (weight.dim() == 2 and "layers." in path)]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0), 0.02),
        (torch.optim.AdamW(others, lr=3e-3, weight_decay=0.0), 3e-3),
    ]
    for step in range(steps):
        value, right = loss()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*matrices, *others], 1.0)
        for optimizer, peak in optimizers:
            optimizer.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / 20, 2 * (1 - step / steps))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 25 == 0 or step + 1 == steps:
            report(step + 1, steps, {f"{name}_loss": value.item(), f"{name}_accuracy": right})


def _share(logits: Tensor, wanted: Tensor) -> float:
    return float((logits.argmax(-1) == wanted).float().mean())
