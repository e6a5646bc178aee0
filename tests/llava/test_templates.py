"""Template texts to the letter, as XTuner 0.1.23 and LLaVA-1.5 have them."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from llava import config
from llava.templates import TEMPLATES, get

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
# name: (question q, suffix, whether the suffix ends the answer, separator, stop words)
EXPECTED = {
    "vicuna": ("USER: q ASSISTANT:", "", False, "\n", ()),
    "plain": ("", "\n", True, "", ("\n",)),
    "llava_v1": (f"{VICUNA} USER: q ASSISTANT:", "", False, "", ()),
    "internlm_chat": ("<|User|>:q<eoh>\n<|Bot|>:", "<eoa>", True, "\n", ("<eoa>",)),
    "internlm2_chat": (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
        True,
        "\n",
        ("<|im_end|>",),
    ),
    "llama2_chat": ("[INST] q [/INST]", "", False, "\n", ()),
    "llama3_chat": (
        "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        True,
        "",
        ("<|eot_id|>",),
    ),
    "phi3_chat": ("<|user|>\nq<|end|>\n<|assistant|>\n", "<|end|>", True, "\n", ("<|end|>",)),
    "chatml": ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", True, "\n", ("<|im_end|>",)),
    "qwen_chat": (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
        True,
        "\n",
        ("<|im_end|>", "<|endoftext|>"),
    ),
}


def test_every_template_of_the_config_is_there() -> None:
    assert set(get_args(config.Template)) == TEMPLATES.keys() == EXPECTED.keys() | {"qwen"}
    assert get("qwen") is get("qwen_chat")


@pytest.mark.parametrize("name", EXPECTED)
def test_texts(name: str) -> None:
    template = get(name)
    seen = (
        template.question("q"),
        template.suffix,
        template.suffix_as_eos,
        template.sep,
        template.stop_words,
    )
    assert (template.name, *seen) == (name, *EXPECTED[name])


def test_systems() -> None:
    assert get("vicuna").system == VICUNA + " {system}\n "
    assert get("internlm2_chat").system == "<|im_start|>system\n{system}<|im_end|>\n"
    assert get("internlm_chat").system == "<|System|>:{system}\n"
    assert get("llama3_chat").system == "<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
    assert get("phi3_chat").system == "<|system|>\n{system}<|end|>\n"
    llama2 = get("llama2_chat").system
    assert llama2.startswith("[INST] <<SYS>>\n You are a helpful, respectful and honest assistant. Always answer as ")
    assert llama2.endswith(" socially unbiased and positive in nature.\n{system}\n<</SYS>>\n [/INST] ")


def test_only_the_first_question_of_llava_v1_has_the_system_sentence() -> None:
    assert get("llava_v1").question("q", turn=1) == "USER: q ASSISTANT:"
    assert get("vicuna").question("q", turn=1) == get("vicuna").question("q")


def test_plain_leaves_the_picture_and_drops_the_words() -> None:
    assert get("plain").question("<image>\nDescribe it.") == "<image>"
    assert get("plain").question("<image>\n<image>\nCompare.") == "<image><image>"
    assert get("plain").question("Hello") == ""
    assert get("plain").answer("a cat") == "a cat\n"


def test_braces_in_a_question_stay() -> None:
    assert get("vicuna").question("{input} {0} {x!r}") == "USER: {input} {0} {x!r} ASSISTANT:"


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="no template named 'vicunna'; there are vicuna, plain"):
        get("vicunna")


def test_templates_need_no_torch() -> None:
    code = "import sys, llava.templates; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
