"""Whose a run's folder is: one run's, whoever else has the name."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from launcher import run_identity
from launcher.run_identity import FolderTaken, claim_folder


def test_a_folder_is_one_runs(own_place: Path) -> None:
    folder = own_place / "runs" / "tour"
    claim_folder(folder, "aaaa")
    assert [path.name for path in folder.iterdir()] == ["run_id"] and (folder / "run_id").read_text() == "aaaa\n"
    claim_folder(folder, "aaaa")
    for stranger in ("bbbb", ""):
        with pytest.raises(FolderTaken, match="belongs to another run \\(id aaaa\\)"):
            claim_folder(folder, stranger)
    assert (folder / "run_id").read_text() == "aaaa\n"


@pytest.mark.parametrize("trace", ["events.jsonl", "metrics.jsonl", "checkpoints/step-000060/COMPLETE", "steps/a.json"])
def test_a_used_folder_without_an_id_is_an_older_runs(own_place: Path, trace: str) -> None:
    (own_place / trace).parent.mkdir(parents=True, exist_ok=True)
    (own_place / trace).touch()
    claim_folder(own_place, "")
    with pytest.raises(FolderTaken, match="holds a run without an id"):
        claim_folder(own_place, "aaaa")
    assert not (own_place / "run_id").exists()
    # The record that lies beside says as much as the file.
    (own_place / "run.json").write_text(json.dumps({"run_id": "aaaa"}))
    claim_folder(own_place, "aaaa")
    with pytest.raises(FolderTaken):
        claim_folder(own_place, "bbbb")


def test_a_plan_without_an_id_writes_nothing(own_place: Path) -> None:
    claim_folder(own_place / "by-hand", "")
    assert not (own_place / "by-hand").exists()


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_many_that_claim_a_folder_at_once_one_gets_it(
    own_place: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:

        def refuse(*arguments: Any) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(run_identity.os, "link", refuse)
    for turn in range(20):
        folder, won, start = own_place / str(turn), list[str](), threading.Barrier(8)

        def claim(run_id: str, folder: Path = folder, won: list[str] = won, start: Any = start) -> None:
            start.wait()
            try:
                claim_folder(folder, run_id)
            except FolderTaken:
                return
            won.append(run_id)

        threads = [threading.Thread(target=claim, args=(f"{number % 4:04d}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won and set(won) == {(folder / "run_id").read_text().strip()} and len(won) == 2
        assert [path.name for path in folder.iterdir()] == ["run_id"]


@pytest.mark.parametrize(("folder", "file"), [(0o700, 0o600), (0o755, 0o644), (0o2770, 0o660)])
def test_who_may_look_into_the_folder_may_read_whose_it_is(own_place: Path, folder: int, file: int) -> None:
    root = own_place / "tour"
    root.mkdir()
    root.chmod(folder)
    before = os.umask(0o077 if folder == 0o2770 else 0o022)
    try:
        claim_folder(root, "aaaa")
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "run_id").stat().st_mode) == file
