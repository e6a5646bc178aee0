"""How does a conversation become token ids when the model is asked, exactly as it was in training?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llava.templates import IMAGE_TAG, get


@dataclass(frozen=True)
class Turn:
    """A question, with ``<image>`` where its pictures go, and its answer."""

    question: str
    answer: str | None = None
    """None: this turn waits for its answer."""


def encode_by_template(turns: list[Turn], tokenizer: Any, name: str) -> list[list[int]]:
    """Token ids by one of our templates, split where pictures belong.

    As trained: a begin-of-sequence token first and, where the template says so, after every end of sequence; every
    piece encoded by itself; no system message.

    Args:
        turns: the last one waits for its answer.
        name: the template's.
    """
    template = get(name)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    chunks: list[list[int]] = [[]]
    ended = True
    for number, turn in enumerate(turns):
        chunks[-1] += bos if ended else []
        first, *rest = template.question(turn.question, number).split(IMAGE_TAG)
        chunks[-1] += _encode(tokenizer, first)
        chunks += [_encode(tokenizer, piece) for piece in rest]
        if turn.answer is not None:
            chunks[-1] += _encode(tokenizer, template.answer(turn.answer))
            chunks[-1] += [] if template.suffix_as_eos else [tokenizer.eos_token_id]
            chunks[-1] += _encode(tokenizer, template.sep)
        ended = template.bos_after_eos and not template.suffix_as_eos
    return chunks


def encode_by_chat_template(turns: list[Turn], tokenizer: Any) -> list[list[int]]:
    """Token ids by the folder's own chat template, for models that were trained elsewhere."""
    typed = "type" in tokenizer.chat_template
    messages: list[dict[str, Any]] = []
    for turn in turns:
        messages.append({"role": "user", "content": _content(turn.question, typed)})
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": _content(turn.answer, typed)})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    first, *rest = text.split(IMAGE_TAG)
    has_bos = bool(tokenizer.bos_token) and first.startswith(tokenizer.bos_token)
    start: list[int] = tokenizer.encode(first, add_special_tokens=not has_bos)
    return [start, *(_encode(tokenizer, piece) for piece in rest)]


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False) if text else []
    return ids


def _content(text: str, typed: bool) -> Any:
    """Text as it is, or a list of typed parts for a template that reads those."""
    if not typed:
        return text
    # Such a template writes the placeholder and its newline itself.
    words = {"type": "text", "text": text.replace(IMAGE_TAG + "\n", "").replace(IMAGE_TAG, "")}
    return [{"type": "image"}] * text.count(IMAGE_TAG) + [words]
