"""From a conversation to token ids and labels: which tokens there are, and which of them are learned.

Rules as in XTuner 0.1.23 (``xtuner/dataset/utils.py``): question, answer and separator are encoded apart, the
beginning-of-sequence token opens the first turn and every turn after an end-of-sequence token; answer, suffix and end
of sequence are learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llava.data.collate import IGNORE, IMAGE_TOKEN
from llava.data.records import Record
from llava.errors import ConfigError
from llava.templates import IMAGE_TAG, Template

Tokens = Mapping[str, list[int]]
"""Token ids of texts."""


@dataclass(frozen=True)
class Specials:
    """The tokens that open and close a sequence."""

    bos: list[int]
    """Empty where the tokenizer has none (Qwen)."""
    eos: int | None


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens."""

    ids: list[int]
    """With IMAGE_TOKEN in the picture's place."""
    labels: list[int]
    """The ids where they are learned, IGNORE elsewhere."""
    whole: int
    """Number of tokens before the cut on the right."""
    learned_lost: int = 0
    """Number of supervised tokens behind the cut."""

    @property
    def truncated(self) -> bool:
        """Something was cut off on the right."""
        return self.whole > len(self.ids)

    @property
    def learned(self) -> int:
        """Number of supervised tokens."""
        return len(self.labels) - self.labels.count(IGNORE)


def specials(tokenizer: Any, template: Template) -> Specials:
    """The tokenizer's special tokens.

    Raises:
        ConfigError: the template ends answers with an end-of-sequence token that the tokenizer lacks.
    """
    if tokenizer.eos_token_id is None and not template.suffix_as_eos:
        raise ConfigError(f"template {template.name} ends answers with an eos token, but the tokenizer has none")
    bos = tokenizer.bos_token_id
    return Specials([] if bos is None else [bos], tokenizer.eos_token_id)


def texts(record: Record, template: Template) -> Iterator[str]:
    """Every text of a conversation that has to be encoded."""
    for number, turn in enumerate(record.turns):
        yield from _pieces(record, template.question(turn.question, number))
        yield template.answer(turn.answer)
    if template.sep:
        yield template.sep


def encode_texts(tokenizer: Any, many: Iterable[str]) -> Tokens:
    """Token ids of texts, each encoded once and without special tokens of the tokenizer's own."""
    unique = [text for text in dict.fromkeys(many) if text]
    return {"": [], **dict(zip(unique, _ids(tokenizer, unique), strict=True))}


def assemble(record: Record, template: Template, tokens: Tokens, special: Specials, max_length: int) -> Encoded:
    """Put a conversation together from its encoded texts.

    Args:
        tokens: of every text that ``texts`` yields.
        max_length: tokens kept, the picture counted as one; the rest is cut off on the right.
    """
    ids: list[int] = []
    labels: list[int] = []

    def add(some: list[int], learned: bool = False) -> None:
        ids.extend(some)
        labels.extend(some if learned else [IGNORE] * len(some))

    opens = True
    for number, turn in enumerate(record.turns):
        add(special.bos if opens else [])
        for place, piece in enumerate(_pieces(record, template.question(turn.question, number))):
            add([IMAGE_TOKEN] if place else [])
            add(tokens[piece])
        add(tokens[template.answer(turn.answer)], learned=True)
        opens = not template.suffix_as_eos and template.bos_after_eos
        if not template.suffix_as_eos and special.eos is not None:
            add([special.eos], learned=True)
        add(tokens[template.sep])
    if labels:
        labels[0] = IGNORE  # nothing comes before it that could foretell it
    lost = len(labels[max_length:]) - labels[max_length:].count(IGNORE)
    return Encoded(ids[:max_length], labels[:max_length], len(ids), lost)


def _ids(tokenizer: Any, many: list[str]) -> list[list[int]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python
        return tokenizer(many, add_special_tokens=False).input_ids if many else []
    # As transformers does before it encodes; what it does after it (masks, offsets) took a third of the time.
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(many, add_special_tokens=False)]


def _pieces(record: Record, question: str) -> list[str]:
    # Without a picture the tag is text like any other.
    return [question] if record.image is None else question.split(IMAGE_TAG)
