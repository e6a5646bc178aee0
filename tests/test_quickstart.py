"""The first command of the README, as a newcomer types it."""

from __future__ import annotations

import json

import pytest

from tests.shell import Shell, shell

__all__ = ["shell"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_quickstart_learns_what_the_untrained_model_does_not_know(shell: Shell) -> None:
    """Draw, build, train in two stages on two nodes, convert, score both models in two shards."""
    child = shell.start("submit", "quickstart", "--nodes", "2", "--name", "first", "--follow")
    out, words = child.communicate(timeout=1100)
    assert child.returncode == 0, out[-3000:] + words
    assert "circular" in out and "untrained" in out
    scores = json.loads((shell.runs / "first/stages/mmbench/eval/mmbench/scores.json").read_text())
    assert scores["rows"] == 640 and scores["questions"] == 160
    assert scores["vanilla"] >= 0.90 and scores["circular"] >= 0.80
    assert scores["by_l2_category"].keys() and scores["by_category"].keys()
    untrained = scores["baseline"]
    assert 0.15 <= untrained["vanilla"] <= 0.35 and untrained["circular"] <= 0.05
    assert {stage["state"] for stage in shell.status("first")["stages"]} == {"SUCCEEDED"}
    assert shell.left("first") == []
