"""Which option does an answer mean? Two rules, both without a judge model.

``xtuner``: the first run of the capitals A to D anywhere in the answer ("Both" means B, "AB" means nothing). It is
that tool's definition of its published numbers, oddities included (xtuner/tools/mmbench.py, v0.1.23).

``vlmevalkit``: VLMEvalKit's rules before its judge (vlmeval/utils/matching_util.py, commit e8e78f05), with exact
matching where they find nothing. One thing differs: there, "the answer is clearly ..." means C and "the answer is a
red ..." means A, because the letter may be the start of a word; here it has to be a word, and may be any option.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

NOTHING = ""
"""No option: the answer counts as wrong."""

_API_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_BLANKED = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_TOKENS = 4
"""A lone letter counts when its first occurrence is among so many last tokens."""
# A lower-case "a" is an article unless the sentence ends there.
_ANSWER_IS = re.compile(r"answer\s+is\s+\**(?:([A-Z])|([b-z])|(a)(?=\W*(?:$|[.,;:!)*\n])))(?!\w)", re.ASCII)


def xtuner(answer: str, options: Mapping[str, str]) -> str:
    """The first run of A-D; only a run of one letter can be right."""
    run = re.search("[A-D]+", answer)
    return run.group() if run else NOTHING


def vlmevalkit(answer: str, options: Mapping[str, str]) -> str:
    """Refusal, lone letter, "the answer is X", then the option's text; the first rule that decides wins."""
    if _API_FAILED not in answer:
        if any(refusal in answer for refusal in _REFUSALS):
            return NOTHING
        tokens = answer.translate(_BLANKED).split()
        letters = [letter for letter in options if letter in tokens]
        if len(letters) == 1 and tokens.index(letters[0]) >= len(tokens) - _LAST_TOKENS:
            return letters[0]
        if not letters and "Z" in tokens:
            return NOTHING
        if letter := _stated(answer, options):
            return letter
    return _quoted_text(answer, options)


def _stated(answer: str, options: Mapping[str, str]) -> str:
    # Only "answer is" is free in case: the letter's case tells the option A from the article.
    found = _ANSWER_IS.search(re.sub(r"answer\s+is", "answer is", answer, flags=re.IGNORECASE))
    letter = next((g.upper() for g in found.groups() if g), NOTHING) if found else NOTHING
    return letter if letter in options else NOTHING


def _quoted_text(answer: str, options: Mapping[str, str]) -> str:
    if len(answer) > 2 * sum(len(text) for text in options.values()):
        return NOTHING
    found = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return found[0] if len(found) == 1 else NOTHING


SCORERS: dict[str, Callable[[str, Mapping[str, str]], str]] = {"xtuner": xtuner, "vlmevalkit": vlmevalkit}
