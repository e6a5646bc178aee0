"""How is a box asked for, and a phrase? XTuner's seven questions for each (xtuner/dataset/refcoco_json.py, v0.1.23)."""

from __future__ import annotations

from llava.templates import IMAGE_TAG

REFER = (
    "[refer] {}",
    "[refer] give me the location of {}",
    "[refer] where is {} ?",
    "[refer] from this image, tell me the location of {}",
    "[refer] the location of {} is",
    "[refer] could you tell me the location for {} ?",
    "[refer] where can I locate the {} ?",
)
"""A phrase is given, the answer is its box."""
IDENTIFY = (
    "[identify] {}",
    "[identify] what object is in this location {}",
    "[identify] identify the object present at this location {}",
    "[identify] what is it in {}",
    "[identify] describe this object in {}",
    "[identify] this {} is",
    "[identify] the object in {} is",
)
"""A box is given, the answer is its phrase."""
ASKED = REFER[1]
"""The one question of the evaluation."""
PROMPT_VERSION = 1
"""Raise it with any change that alters a prompt."""


def picture_question(phrase: str) -> str:
    """The user's whole turn: the picture, a newline, the question; as training data's turns are after mapping."""
    return f"{IMAGE_TAG}\n{ASKED.format(phrase).replace(IMAGE_TAG, '').strip()}"
