"""A conversation with a model: its pictures, what was said, and answers that appear as they are made.

Every turn is written as in training: begin-of-sequence where the template had one, a picture in front of the question
that it is shown with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.dialogue import Turn
from llava.errors import ConfigError, DataError
from llava.generate import Pick, argmax, cut_at_words, steps
from llava.logs import LOG
from llava.templates import IMAGE_TAG, get

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from llava.hf_model import Bits, HfLlava


@dataclass(frozen=True)
class Style:
    """How answers are made."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    """0: the likeliest token; higher: drawn, the more freely."""
    seed: int = 0


class Conversation:
    """A model, its pictures (encoded once) and what was said.

    Args:
        llava: the model.
        pictures: files, shown with the first question.
        style: how answers are made.

    Raises:
        ConfigError: a picture is not there.
        DataError: it cannot be read.
    """

    def __init__(self, llava: HfLlava, pictures: Iterable[str | Path] = (), style: Style | None = None) -> None:
        self._llava = llava
        self._style = style or Style()
        self._shown: list[_Shown] = []
        self._waiting = 0
        self.turns: list[Turn] = []
        for path in pictures:
            self.show(path)
        self._first = tuple(self._shown)

    @property
    def pictures(self) -> list[str]:
        """Paths of the pictures that were shown, in order."""
        return [shown.path for shown in self._shown]

    def show(self, path: str | Path) -> None:
        """Look at one more picture, which goes in front of the next question.

        Raises:
            ConfigError, DataError: it is not there, or cannot be read.
        """
        pixels = self._llava.pixels([_open(path)])
        self._shown.append(_Shown(str(path), self._llava.encode_pixels(pixels)[0]))
        self._waiting += 1

    def ask(self, question: str) -> Iterator[str]:
        """Yield the answer so far, again and again, and remember the turn when it is complete.

        Raises:
            ConfigError: the conversation has become too long for the model.
        """
        words = question.replace(IMAGE_TAG, "").strip()
        asked = Turn((IMAGE_TAG + "\n") * self._waiting + words)
        features = [shown.features for shown in self._shown]
        prompt = self._llava.embed(self._llava.chunks([*self.turns, asked]), features)
        self._check_length(len(prompt))
        answer = ""
        for answer in _growing(self._tokens(prompt), self._llava):
            yield answer
        self.turns.append(Turn(asked.question, answer))
        self._waiting = 0

    def reset(self) -> None:
        """Forget what was said and shown since; the first pictures stay."""
        self.turns.clear()
        self._shown = list(self._first)
        self._waiting = len(self._shown)

    def record(self) -> dict[str, Any]:
        """The conversation as a LLaVA record; ``image`` is a list where several pictures were shown."""
        messages = []
        for turn in self.turns:
            messages += [{"from": "human", "value": turn.question}, {"from": "gpt", "value": turn.answer or ""}]
        seen = self.pictures[: len(self.pictures) - self._waiting]
        image = {"image": seen[0] if len(seen) == 1 else seen} if seen else {}
        return {"id": "chat", **image, "conversations": messages}

    def _check_length(self, tokens: int) -> None:
        most = self._llava.model.config.text_config.max_position_embeddings
        if tokens >= most:
            raise ConfigError(f"the conversation has {tokens} tokens, the model reads {most}", "Type /reset.")

    def _tokens(self, prompt: torch.Tensor) -> Iterator[int]:
        pick = _pick(self._style)
        for count, (token,) in enumerate(steps(self._llava.model, [prompt], pick), start=1):
            if token in self._llava.stop.ids:
                return
            yield token
            if count == self._style.max_new_tokens:
                return


@dataclass(frozen=True)
class _Shown:
    path: str
    features: torch.Tensor
    """[picture tokens, hidden]."""


def _growing(tokens: Iterator[int], llava: HfLlava) -> Iterator[str]:
    """The answer's text so far, without what may still change: half a character, or the start of a stop word."""
    seen: list[int] = []
    text = ""
    for token in tokens:
        seen.append(token)
        text = llava.decode(seen)
        shown = cut_at_words(text, llava.stop.words)
        if shown != text:
            yield shown.strip()
            return
        yield _settled(text, llava.stop.words).lstrip()
    yield cut_at_words(text, llava.stop.words).strip()


def _settled(text: str, words: tuple[str, ...]) -> str:
    text = text.rstrip("\ufffd")  # the rest of a character of several tokens is still to come
    for word in words:
        for length in range(min(len(word) - 1, len(text)), 0, -1):
            if text.endswith(word[:length]):
                return text[:-length].rstrip()
    # Blanks at the end are dropped from a finished answer, so they wait for what follows.
    return text.rstrip()


def _pick(style: Style) -> Pick:
    if not style.temperature:
        return argmax
    import torch

    generator = torch.Generator().manual_seed(style.seed)

    def draw(logits: torch.Tensor) -> torch.Tensor:
        chances = (logits.float().cpu() / style.temperature).softmax(-1)
        return torch.multinomial(chances, 1, generator=generator)[:, 0].to(logits.device)

    return draw


def _open(path: str | Path) -> Image.Image:
    from PIL import Image as images

    try:
        with images.open(path) as image:
            return images.Image.convert(image, "RGB")
    except FileNotFoundError:
        raise ConfigError(f"picture not found: {path}") from None
    except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
        raise DataError(f"cannot read the picture {path}: {error}") from None


def check_choices(device: str, precision: str, template: str | None) -> None:
    """Refuse a word that is none of ours, all at once.

    Raises:
        ConfigError: with what there is to choose from.
    """
    from typing import get_args

    from llava import config

    given = {"device": (device, config.Device), "precision": (precision, config.Precision)}
    if template is not None:
        given["template"] = (template, config.Template)
    wrong = [
        f"{name} {value!r} is none of {', '.join(get_args(choices))}"
        for name, (value, choices) in given.items()
        if value not in get_args(choices)
    ]
    if wrong:
        raise ConfigError("; ".join(wrong))


def chat(
    model: str | Path,
    pictures: Iterable[str | Path] = (),
    question: str | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    template: str | None = None,
    bits: Bits | None = None,
    style: Style | None = None,
) -> None:
    """Ask one question, or talk line by line on standard input.

    Args:
        model: a Hugging Face LLaVA folder.
        pictures: files to look at.
        question: None: read questions from standard input.
        device: auto, cpu or cuda.
        precision: auto, fp32, bf16 or fp16.
        template: overrides the folder's conversation template.
        bits: language model in 4 or 8 bits.
        style: how answers are made.

    Raises:
        ConfigError, DataError, WeightsError: the model or a picture cannot be used.
    """
    from llava.hf_model import load
    from llava.talk import answer, talk

    llava = load(model, device, precision, template, bits)
    if llava.template is not None and not get(llava.template).keeps_question:
        LOG.warning("template %s was trained on pictures alone: the model sees no word of a question", llava.template)
    conversation = Conversation(llava, pictures, style)
    if question is None:
        talk(conversation, sys.stdin, sys.stdout)
    else:
        answer(conversation, question, sys.stdout)
