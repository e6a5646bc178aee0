"""A run's folder that submit makes here, and pods of another user: who may write there, tried as that user."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.kubernetes import probe
from launcher.backends.kubernetes.sharing import not_shared, share_folder
from launcher.profiles import Profile
from launcher.tree import Tree

POD, GROUP = 64000, 64001
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's place, which only root may")


def settings(user: int | None = POD, group: int | None = POD, fs_group: int | None = GROUP) -> dict[str, Any]:
    return {"run_as": {"user": user, "group": group, "fs_group": fs_group}}


@pytest.fixture
def runs() -> Iterator[Path]:
    """A folder of runs that any user may look into; pytest's own is closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="llavajob-sharing-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def make_run(runs: Path) -> Path:
    """What submit makes, where files of runs are closed to others."""
    run = runs / "night"
    for part in ("attempts/0", "stages/world"):
        (run / part).mkdir(parents=True)
    for name in ("run.json", "stages/world/config.yaml"):
        (run / name).write_text("{}")
        (run / name).chmod(0o600)
    for folder in (run, run / "attempts", run / "attempts/0", run / "stages", run / "stages/world"):
        folder.chmod(0o700)
    return run


def as_pod(*actions: Any) -> bool:
    """Whether a pod's user can do something: uid and group as run_as says, with fs_group beside."""
    child = os.fork()
    if child == 0:
        os.setgroups([GROUP])
        os.setgid(POD)
        os.setuid(POD)
        try:
            for action in actions:
                action()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def writes(run: Path) -> tuple[Any, ...]:
    """What pods do in a run's folder."""
    return (
        lambda: (run / "stages/world/config.yaml").read_text(),
        lambda: (run / "attempts/0/exits").mkdir(),
        lambda: (run / "steps/train.json").write_text("{}"),
        lambda: (run / "metrics.jsonl").write_text("{}"),
        lambda: (run / "checkpoints").mkdir(),
    )


@needs_root
@pytest.mark.parametrize("group", [POD, GROUP])
@pytest.mark.parametrize("mode", [0o755, 0o2775])
def test_pods_write_where_the_runs_belong_to_a_group_of_theirs(runs: Path, group: int, mode: int) -> None:
    os.chown(runs, 0, group)
    runs.chmod(mode)
    run = make_run(runs)
    assert not as_pod(*writes(run))
    assert share_folder(run, settings())
    assert as_pod(*writes(run))
    # Nothing for anybody else, and what submit cleans up at a resume lies in a folder of its own.
    assert all(stat.S_IMODE(path.lstat().st_mode) & 0o007 == 0 for path in (run, run / "attempts", run / "run.json"))
    assert (run / "steps").stat().st_uid == 0


@needs_root
def test_nothing_is_opened_where_the_runs_belong_to_another_group(runs: Path) -> None:
    run = make_run(runs)
    assert not share_folder(run, settings())
    assert not as_pod(*writes(run)) and stat.S_IMODE(run.stat().st_mode) == 0o700
    said = not_shared(runs, settings())
    assert said.startswith(f"pods run as user {POD} and may not be able to write to {runs}")
    assert f"kubernetes.run_as.user: {os.getuid()}, or" in said and f"chgrp {GROUP} {runs}; chmod 2775 {runs}" in said


@pytest.mark.parametrize("user", [os.getuid(), 0])
def test_pods_that_may_write_anyway_change_nothing(runs: Path, user: int) -> None:
    run = make_run(runs)
    assert share_folder(run, settings(user, None, None)) and stat.S_IMODE(run.stat().st_mode) == 0o700


def test_links_and_what_pods_made_are_left_alone(runs: Path) -> None:
    """With the group that is ours: any user can try it."""
    run = make_run(runs)
    outside = runs / "outside"
    outside.write_text("mine")
    outside.chmod(0o600)
    (run / "link").symlink_to(outside)
    (run / "checkpoints/step-1").mkdir(parents=True, mode=0o700)
    assert share_folder(run, settings(POD, runs.stat().st_gid, None))
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600
    assert stat.S_IMODE((run / "checkpoints/step-1").stat().st_mode) == 0o700


# What doctor tries


def site(runs: Path, **who: int | None) -> Profile:
    place = {"run_as": settings(**who)["run_as"], "runs": "", "volumes": [{"mount": str(runs), "pvc": "a"}]}
    return Profile("site", "kubernetes", runs, place=Tree({"kubernetes": place}))


@needs_root
@pytest.mark.parametrize("shared", [True, False])
def test_doctor_tries_a_folder_as_submit_makes_it(runs: Path, shared: bool) -> None:
    """The folder of runs itself may be the pods' to write, and a run's folder not."""
    runs.chmod(0o777)
    os.chown(runs, 0, GROUP if shared else 0)
    name = probe._trial_folder(site(runs))
    trial = runs / name
    assert as_pod(lambda: (runs / "own").mkdir())
    assert as_pod(lambda: (trial / "below").mkdir(), lambda: (trial / "below").rmdir()) is shared
    probe._remove_trial_folder(trial)
    assert not trial.exists()


def test_doctors_words_for_a_folder_that_pods_cannot_write(runs: Path) -> None:
    report = {"user": POD, "trial": True, "free_error": "PermissionError: no"}
    (finding,) = probe._runs(site(runs), report, ".doctor-1")
    assert finding.good is False and finding.seen == f"user {POD} cannot write to {runs}: PermissionError: no"
    assert finding.cure.startswith(f"Set kubernetes.run_as.user: {os.getuid()}, or give the folder to their group")
    (finding,) = probe._runs(site(runs), {**report, "trial": False}, ".doctor-1")
    assert finding.seen == f"pods do not see {runs} as it is here"


def test_the_look_itself_writes_as_a_run_does_and_leaves_nothing(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "trial").mkdir()
    code = probe._LOOK.replace('look("torch", gpus)', "")
    for trial in ("", str(runs / "trial"), str(runs / "nowhere")):
        script = f"import sys\nsys.argv = ['-c', {str(runs)!r}, {trial!r}]\n" + code
        exec(compile(script, "look", "exec"), {})
        said = capsys.readouterr().out
        assert ('"free": ' in said) == ("nowhere" not in trial) and f'"trial": {str("/trial" in trial).lower()}' in said
        assert [path.name for path in runs.iterdir()] == ["trial"] and list((runs / "trial").iterdir()) == []
