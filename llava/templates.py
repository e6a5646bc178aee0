"""Conversation templates as data: what stands around a question and its answer, to the letter.

Texts as in XTuner 0.1.23 (``xtuner/utils/templates.py``), except ``plain`` and ``llava_v1``, which follow LLaVA-1.5's
own ``conversation.py``. No torch here: prompts are built wherever there is a string.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

IMAGE_TAG: Final = "<image>"
"""Stands in a text where the picture goes."""


@dataclass(frozen=True)
class Template:
    """How one turn is written down.

    A turn is ``instruction`` filled with the question, then the answer, ``suffix``, the end-of-sequence token (unless
    ``suffix_as_eos``), and ``sep``. Loss falls on answer, suffix and end of sequence.
    """

    name: str
    """What the config calls it; it travels with the weights."""
    system: str
    """Text in front of the first instruction where a system message is given; ``{system}`` is its place."""
    instruction: str
    """Question of the first turn; ``{input}`` is its place."""
    suffix: str = ""
    """Closes the answer and is learned with it."""
    suffix_as_eos: bool = False
    """The suffix ends the answer; no end-of-sequence token follows."""
    sep: str = ""
    """Between turns, not learned."""
    stop_words: tuple[str, ...] = ()
    """Generation ends at any of these, besides the end-of-sequence token."""
    next_instruction: str = ""
    """Question of later turns; empty: as the first."""
    bos_after_eos: bool = True
    """A turn after an end-of-sequence token begins with a begin-of-sequence token again, as XTuner trains it."""
    keeps_question: bool = True
    """False: the human's words are left out in training and only the picture stays (LLaVA's ``plain``)."""

    def question(self, text: str, turn: int = 0) -> str:
        """The prompt of turn number ``turn`` (from 0), up to where the answer begins."""
        if not self.keeps_question:
            text = IMAGE_TAG * text.count(IMAGE_TAG)
        instruction = self.next_instruction if turn and self.next_instruction else self.instruction
        return instruction.format(input=text)

    def answer(self, text: str) -> str:
        """The answer as it is learned, without the end-of-sequence token."""
        return text + self.suffix


_VICUNA_SYSTEM: Final = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAMA2_SYSTEM: Final = (
    "[INST] <<SYS>>\n You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe. Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or "
    "illegal content. Please ensure that your responses are socially unbiased and positive in nature.\n"
    "{system}\n<</SYS>>\n [/INST] "
)
_CHATML_SYSTEM: Final = "<|im_start|>system\n{system}<|im_end|>\n"
_CHATML_INSTRUCTION: Final = "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"


def _chatml(name: str, *more_stop_words: str) -> Template:
    return Template(
        name, _CHATML_SYSTEM, _CHATML_INSTRUCTION, "<|im_end|>", True, "\n", ("<|im_end|>", *more_stop_words)
    )


_ALL: Final = (
    Template("vicuna", _VICUNA_SYSTEM + " {system}\n ", "USER: {input} ASSISTANT:", sep="\n"),
    # LLaVA's first stage: picture, caption, new line. The new line is learned and ends the caption.
    Template("plain", "", "{input}", suffix="\n", suffix_as_eos=True, stop_words=("\n",), keeps_question=False),
    # LLaVA's second stage: the system sentence always, one begin-of-sequence token in all, no new lines.
    Template(
        "llava_v1",
        "",
        _VICUNA_SYSTEM + " USER: {input} ASSISTANT:",
        next_instruction="USER: {input} ASSISTANT:",
        bos_after_eos=False,
    ),
    Template(
        "internlm_chat",
        "<|System|>:{system}\n",
        "<|User|>:{input}<eoh>\n<|Bot|>:",
        "<eoa>",
        True,
        "\n",
        ("<eoa>",),
    ),
    _chatml("internlm2_chat"),
    Template("llama2_chat", _LLAMA2_SYSTEM, "[INST] {input} [/INST]", sep="\n"),
    Template(
        "llama3_chat",
        "<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n{input}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        True,
        "",
        ("<|eot_id|>",),
    ),
    Template(
        "phi3_chat",
        "<|system|>\n{system}<|end|>\n",
        "<|user|>\n{input}<|end|>\n<|assistant|>\n",
        "<|end|>",
        True,
        "\n",
        ("<|end|>",),
    ),
    _chatml("chatml"),
    _chatml("qwen_chat", "<|endoftext|>"),
)
TEMPLATES: Final[dict[str, Template]] = {template.name: template for template in _ALL}
TEMPLATES["qwen"] = TEMPLATES["qwen_chat"]  # the short name; the long one travels with the weights


def get(name: str) -> Template:
    """The template of that name.

    Raises:
        KeyError: there is none; the message lists those there are.
    """
    try:
        return TEMPLATES[name]
    except KeyError:
        raise KeyError(f"no template named {name!r}; there are {', '.join(TEMPLATES)}") from None
