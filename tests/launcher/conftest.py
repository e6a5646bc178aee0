"""Tests of the launcher call it as a person would; its runtime is one that needs no torch."""

from __future__ import annotations

from tests.shell import Result, Shell, pipeline, recipe, shell

__all__ = ["Result", "Shell", "pipeline", "recipe", "shell"]
