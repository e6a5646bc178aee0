"""How does a conversation template look as the Jinja text that other tools read?"""

from __future__ import annotations

import json

from llava.templates import IMAGE_TAG, Template

_PLACE = "{input}"


def chat_template(template: Template, has_bos: bool) -> str:
    """Jinja text that writes a conversation as it was trained.

    Content may be text or a list of typed parts; pictures come first, each with a newline behind it. A system message
    is written only where the caller gives one, since training had none.

    Args:
        template: ours.
        has_bos: whether the tokenizer has a begin-of-sequence token.
    """
    bos = "{{ bos_token }}" if has_bos else ""
    again = "{% if not loop.last %}" + bos + "{% endif %}" if _bos_again(template) else ""
    ending = _text(template.suffix) if template.suffix_as_eos else _text(template.suffix) + "{{ eos_token }}"
    return (
        bos
        + "{% set seen = namespace(turns=0) %}"
        + "{% for message in messages %}"
        + "{% if message['role'] == 'system' %}"
        + _system(template)
        + "{% elif message['role'] == 'user' %}"
        + _question(template)
        + "{% set seen.turns = seen.turns + 1 %}"
        + "{% else %}"
        + _CONTENT
        + ending
        + _text(template.sep)
        + again
        + "{% endif %}{% endfor %}"
    )


_CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
)
_PICTURES = (
    "{% if message['content'] is not string %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE_TAG + "{{ " + json.dumps("\n") + " }}{% endif %}{% endfor %}{% endif %}"
)
# A template that drops the question drops the newline behind the picture with it.
_PICTURE_ALONE = (
    "{% if message['content'] is string %}{% if " + json.dumps(IMAGE_TAG) + " in message['content'] %}" + IMAGE_TAG
    + "{% endif %}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}" + IMAGE_TAG
    + "{% endif %}{% endfor %}{% endif %}"
)  # fmt: skip


def _bos_again(template: Template) -> bool:
    return template.bos_after_eos and not template.suffix_as_eos


def _question(template: Template) -> str:
    body = _PICTURES + _CONTENT if template.keeps_question else _PICTURE_ALONE
    first = _around(template.instruction, body)
    if not template.next_instruction:
        return first
    later = _around(template.next_instruction, body)
    return "{% if seen.turns %}" + later + "{% else %}" + first + "{% endif %}"


def _system(template: Template) -> str:
    if not template.system:
        return ""
    before, _, after = template.system.partition("{system}")
    return _text(before) + _CONTENT + _text(after)


def _around(instruction: str, body: str) -> str:
    before, _, after = instruction.partition(_PLACE)
    return _text(before) + body + _text(after)


def _text(literal: str) -> str:
    """A literal that Jinja neither reads as its own signs nor strips."""
    return "{{ " + json.dumps(literal) + " }}" if literal else ""
