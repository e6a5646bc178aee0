"""Which names runs and stages may bear: what a folder, a Slurm job and a Kubernetes object all can."""

from __future__ import annotations

import re

LONGEST_NAME = 50
"""Pods are named ``<run>-worker-<i>``, and a label holds 63 characters."""
NAME_RULE = f"lower-case letters, digits and hyphens, a letter first, at most {LONGEST_NAME} characters"
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def is_name(text: str) -> bool:
    """Tell whether a text is a legal name."""
    return _NAME.fullmatch(text) is not None and len(text) <= LONGEST_NAME


def as_name(text: str) -> str:
    """Return the nearest legal name to any text."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    slug = slug if slug[:1].isalpha() else f"run-{slug}".strip("-")
    return slug[:LONGEST_NAME].rstrip("-")
