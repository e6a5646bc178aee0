"""The training loop in one process: resuming, stopping, bad pictures, full disks, number formats."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from llava import checkpoint, interrupt
from llava.errors import ConfigError, DataError, Interrupted, TrainingError, WeightsError
from llava.model.load import load_trained
from llava.run_folder import RunFolder, read_lines
from tests.llava.train_helpers import (
    Bases,
    end,
    events,
    losses,
    make_job,
    start_alone,
    steps_saved,
    train_here,
    wait_for_step,
)


@pytest.fixture(scope="module")
def bases(tiny_language: Path, tiny_vision: Path, tiny_records: Path) -> Bases:
    return Bases(tiny_language, tiny_vision, tiny_records)


@pytest.fixture(scope="module")
def whole(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that nothing disturbed."""
    return train_here(make_job(bases, tmp_path_factory.mktemp("whole")))


@contextmanager
def asked_after(updates: int, name: str = "SIGTERM") -> Iterator[None]:
    """As if a signal had come while the update after so many ran."""
    from llava.meter import Meter

    count = Meter.count

    def counted(self: Meter, done: int, *values: Any) -> None:
        count(self, done, *values)
        if done == updates:
            interrupt._seen.append(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Meter, "count", counted)
        yield
    interrupt._seen.clear()


def test_a_run_learns_and_writes_what_it_promises(whole: RunFolder) -> None:
    lines = list(read_lines(whole.metrics))
    assert [m["step"] for m in lines] == list(range(1, 17))
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    keys = {"step", "total_steps", "epoch", "loss", "learning_rate", "grad_norm", "samples_per_s", "tokens_per_s"}
    assert keys | {"memory_mb", "eta_s", "time", "attempt"} == lines[0].keys()
    (started,) = events(whole, "started")
    assert (started["world_size"], started["nodes"], started["total_steps"]) == (1, 1, 16)
    assert started["trainable"] == {"projector": 8320, "language": 8192 + 0}
    assert [e["step"] for e in events(whole, "checkpoint")] == [4, 8, 12, 16]
    assert steps_saved(whole) == [12, 16]  # keep_last: 2
    assert events(whole, "finished")[0]["step"] == 16
    state = load_file(whole.checkpoint(16) / "weights.safetensors")
    projector = load_file(whole.model / "projector" / "model.safetensors")
    assert (projector["linear_1.weight"] == state["projector.linear_1.weight"]).all()
    assert load_trained(whole.model).step == 16


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    bases: Bases, whole: RunFolder, tmp_path: Path
) -> None:
    job = make_job(bases, tmp_path)
    with asked_after(6), pytest.raises(Interrupted, match="SIGTERM: stopped after 6 updates") as stop:
        train_here(job)
    assert stop.value.exit_code == 175
    run = RunFolder(tmp_path)
    assert steps_saved(run) == [4, 6]
    assert events(run, "interrupted")[0] == {**events(run, "interrupted")[0], "step": 6, "signal": "SIGTERM"}
    train_here(job)
    assert events(run, "resumed")[0]["step"] == 6
    assert losses(run) == losses(whole)
    for name in ("weights.safetensors", "optimizer.safetensors"):
        assert (run.checkpoint(16) / name).read_bytes() == (whole.checkpoint(16) / name).read_bytes()


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(bases: Bases, whole: RunFolder, tmp_path: Path) -> None:
    job = make_job(bases, tmp_path)
    process = start_alone(job)
    run = RunFolder(tmp_path)
    wait_for_step(run, 5, process)
    process.send_signal(signal.SIGKILL)
    assert end(process)[0] == -signal.SIGKILL
    assert not run.model.exists(), "killed too late to prove anything"
    train_here(job)
    assert events(run, "resumed")[0]["step"] in (4, 8, 12)
    assert losses(run) == losses(whole)


def test_signal_before_the_first_update_leaves_nothing_and_exits_175(bases: Bases, tmp_path: Path) -> None:
    process = start_alone(make_job(bases, tmp_path, max_steps=100_000))
    # The handlers stand as soon as the command line is read; the imports take seconds after that.
    from tests.llava.train_helpers import wait_for

    wait_for(lambda: _handles(process.pid, signal.SIGTERM), "the handler", process)
    process.send_signal(signal.SIGTERM)
    code, output = end(process)
    assert code == 175, output
    assert "SIGTERM" in output and "Traceback" not in output
    assert not (tmp_path / "checkpoints").exists()


def _handles(pid: int, number: signal.Signals) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def test_workers_change_nothing_but_who_reads_the_pictures(bases: Bases, whole: RunFolder, tmp_path: Path) -> None:
    run = train_here(make_job(bases, tmp_path, workers=2))
    assert losses(run) == losses(whole)


def test_bad_pictures_are_skipped_named_once_and_limited(bases: Bases, tmp_path: Path) -> None:
    data = shutil.copytree(bases.data, tmp_path / "data")
    (data / "images" / "000.png").unlink()
    torn = data / "images" / "001.png"
    torn.write_bytes(torn.read_bytes()[:60])
    here = Bases(bases.language, bases.vision, data)

    run = train_here(make_job(here, tmp_path / "run", max_bad_images=2, max_steps=8))  # two passes and more
    skipped = events(run, "skipped_image")
    assert sorted(Path(e["path"]).name for e in skipped) == ["000.png", "001.png"]
    assert {e["path"] for e in skipped} == {str(data / "images" / n) for n in ("000.png", "001.png")}
    assert json.loads((run.checkpoint(8) / "state.json").read_text())["bad_pictures"] == sorted(
        e["path"] for e in skipped
    )

    with pytest.raises(DataError, match=r"bad pictures: 2, allowed: 1: .*000.png, .*001.png"):
        train_here(make_job(here, tmp_path / "limited", max_bad_images=1, max_steps=8))
    # What an earlier attempt found counts, even if it saved nothing.
    (data / "images" / "001.png").write_bytes((bases.data / "images" / "001.png").read_bytes())
    with pytest.raises(DataError, match="bad pictures: 2, allowed: 1"):
        train_here(make_job(here, tmp_path / "limited", max_bad_images=1, max_steps=8))


def test_nan_stops_the_run_and_keeps_the_last_checkpoint(bases: Bases, tmp_path: Path) -> None:
    job = make_job(bases, tmp_path, max_steps=4)
    run = train_here(job)
    file = run.checkpoint(4) / "weights.safetensors"
    state = load_file(file)
    state["projector.linear_1.bias"][0] = float("nan")  # what a diverged run looks like
    save_file(state, file, metadata={"format": "pt"})
    diverged = file.read_bytes()
    with pytest.raises(TrainingError, match=r"the loss is nan at update 5\n.*checkpoint \(4 updates\) is kept") as stop:
        train_here(make_job(bases, tmp_path))
    assert stop.value.exit_code == 3
    assert steps_saved(run) == [4]
    assert file.read_bytes() == diverged
    assert len(losses(run)) == 4


def test_torn_checkpoints_are_ignored_and_removed(bases: Bases, whole: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    job = make_job(bases, tmp_path)
    with asked_after(6), pytest.raises(Interrupted):
        train_here(job)
    # Cut short though marked complete, without its marker, and never moved in place.
    torn = shutil.copytree(run.checkpoint(6), run.checkpoint(9))
    (torn / "optimizer.safetensors").write_bytes(b"short")
    shutil.copytree(run.checkpoint(6), run.checkpoint(10))
    (run.checkpoint(10) / "COMPLETE").unlink()
    shutil.copytree(run.checkpoint(6), run.checkpoints / ".step-000011.tmp-host-1")
    train_here(job)
    assert events(run, "resumed")[0]["step"] == 6
    assert losses(run) == losses(whole)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-000012", "step-000016"]


def test_a_checkpoint_of_another_run_is_refused(bases: Bases, tmp_path: Path) -> None:
    train_here(make_job(bases, tmp_path, max_steps=4))
    with pytest.raises(ConfigError, match=r"seed was 1 and is 2; global_batch was 8 and is 4"):
        train_here(make_job(bases, tmp_path, seed=2, global_batch=4))
    lora = {"rank": 2, "alpha": 8, "dropout": 0.0}
    other = {"language": {"path": str(bases.language), "tuning": "lora", "lora": lora}}
    with pytest.raises(WeightsError, match=r"weights of checkpoint .*step-000004 does not fit .*: other shapes"):
        train_here(make_job(bases, tmp_path, model=other))
    with pytest.raises(WeightsError, match="left over: language"):
        train_here(make_job(bases, tmp_path, model={"language": {"path": str(bases.language)}}))


@contextmanager
def small_disk(folder: Path) -> Iterator[int]:
    """A disk with room for one checkpoint and a half: a mount of its own, or else a limit on the size of files."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        try:
            yield errno.ENOSPC
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        yield errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(bases: Bases, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with small_disk(run.checkpoints) as error:
        if error == errno.EFBIG:  # every checkpoint is too large: an earlier one is put there by hand
            pytest.skip("no mount here, and a limit on file sizes leaves no room for a first checkpoint")
        with pytest.raises(TrainingError, match=r"saving the checkpoint of update 8 .*No space left") as stop:
            train_here(make_job(bases, tmp_path / "run"))
        assert "the disk is full" in stop.value.hint and stop.value.exit_code == 3
        assert steps_saved(run) == [4]
        assert [p.name for p in run.checkpoints.iterdir()] == ["step-000004"], "the torn half was left"
    assert not events(run, "finished")


def test_a_file_that_may_not_grow_stops_the_run(bases: Bases, tmp_path: Path) -> None:
    job = make_job(bases, tmp_path, max_steps=4)
    run = train_here(job)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(TrainingError, match="saving the checkpoint of update 8"):
            train_here(make_job(bases, tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-000004"]
    train_here(make_job(bases, tmp_path))
    assert events(run, "resumed")[-1]["step"] == 4


def test_metrics_that_may_not_grow_end_the_job_with_code_3(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from llava import train

    monkeypatch.setattr(train, "prepare_process", lambda: None)
    monkeypatch.setattr(train.LOG, "propagate", True)
    job = make_job(bases, tmp_path, max_steps=100, save_every_steps=100)
    interrupt._seen.clear()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, before[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            train.train_job(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert stop.value.code == 3
    assert f"writing to {tmp_path} failed: File too large" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_stops_the_run(bases: Bases, tmp_path: Path) -> None:
    run = train_here(make_job(bases, tmp_path, max_steps=4))
    run.checkpoints.chmod(0o500)
    try:
        with pytest.raises(TrainingError, match=r"Permission denied.*\n.*give it and resume"):
            train_here(make_job(bases, tmp_path))
    finally:
        run.checkpoints.chmod(0o700)
    assert steps_saved(run) == [4]


def test_the_token_index_is_made_once(bases: Bases, whole: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.data import index

    read: list[object] = []
    monkeypatch.setattr(index, "read_records", read.append)
    train_here(make_job(bases, whole.root))
    assert read == [], "records were read again"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"records": "nowhere.json"}, "data.records: file not found: nowhere.json"),
        ({"model": {"projector": {"tuning": "frozen"}, "language": None}}, "nothing trains"),
        ({"precision": "fp16"}, "train.precision is fp16, which needs a GPU"),
    ],
)
def test_wrong_requests_are_config_errors(bases: Bases, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    if "model" in change:
        change["model"]["language"] = {"path": str(bases.language)}
    with pytest.raises(ConfigError, match=message):
        train_here(make_job(bases, tmp_path, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16"},
        {"gradient_checkpointing": True},
        {"group_by_length": True},
        {"model": "projector"},
        {"model": "nf4"},
        {"model": "full"},
    ],
    ids=lambda change: str(next(iter(change.values()))) + "-" + next(iter(change)),
)
def test_every_way_of_training_learns(bases: Bases, tmp_path: Path, change: dict[str, Any]) -> None:
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
    models: dict[str, dict[str, Any]] = {
        "projector": {"language": {"path": str(bases.language)}},
        "nf4": {
            "language": {"path": str(bases.language), "tuning": "lora", "quantize": "nf4", "lora": lora},
            "vision": {"path": str(bases.vision), "tuning": "lora", "lora": lora, "learning_rate": 1e-3},
        },
        "full": {
            "language": {"path": str(bases.language), "tuning": "full", "learning_rate": 1e-3},
            "vision": {"path": str(bases.vision), "tuning": "full", "learning_rate": 1e-4},
        },
    }
    model = models.get(change.pop("model", ""))
    run = train_here(make_job(bases, tmp_path, model=model, max_steps=12, **change))
    seen = losses(run)
    assert seen[12][0] < 0.9 * seen[1][0]
    assert load_trained(run.model).step == 12


def test_size_of_micro_batches_changes_nothing_but_rounding(bases: Bases, tmp_path: Path) -> None:
    """Only the projector trains, so a micro-batch of text alone has nothing to learn from; it still counts."""
    model = {"language": {"path": str(bases.language)}}
    runs = [
        losses(train_here(make_job(bases, tmp_path / str(size), model=model, device_batch=size, max_steps=6)))
        for size in (1, 2, 8)
    ]
    for step in range(1, 7):
        assert runs[0][step] == pytest.approx(runs[2][step], rel=1e-4), step
        assert runs[1][step] == pytest.approx(runs[2][step], rel=1e-4), step


def test_recomputing_activations_changes_no_bit(bases: Bases, whole: RunFolder, tmp_path: Path) -> None:
    run = train_here(make_job(bases, tmp_path, gradient_checkpointing=True, max_steps=3, epochs=1000))
    # The schedule is another (3 updates in all), so only the first update can be compared.
    assert losses(run)[1] == losses(whole)[1]


def test_checkpoints_kept_for_good(bases: Bases, tmp_path: Path) -> None:
    run = train_here(make_job(bases, tmp_path, save_every_steps=2, keep_last=1, keep_every_steps=6))
    assert steps_saved(run) == [6, 12, 16]


def test_damaged_checkpoint_files_are_named(bases: Bases, tmp_path: Path) -> None:
    run = train_here(make_job(bases, tmp_path, max_steps=4))
    file = run.checkpoint(4) / "weights.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)  # as long as it should be, so only reading finds it
    with pytest.raises(WeightsError, match=r"checkpoint .*step-000004 is damaged"):
        train_here(make_job(bases, tmp_path))


def test_newest_checkpoint_is_loadable_at_every_moment_of_a_write(tmp_path: Path, whole: RunFolder) -> None:
    """Whatever call a writer is killed at, the checkpoint before or after it stands whole."""
    state, progress = checkpoint.read(whole.checkpoint(16))
    folder = tmp_path / "checkpoints"
    checkpoint.write(folder / "step-000001", state, progress)
    seen = []

    def look(frame: Any, event: str, argument: Any) -> Callable[..., Any]:
        newest = checkpoint.newest(folder)
        assert newest is not None
        seen.append(newest.name)
        return look

    import sys

    calls = (checkpoint._write_tensors, checkpoint._write_text, checkpoint._move_in_place, checkpoint.prune)
    codes = {call.__code__ for call in calls}
    sys.settrace(lambda frame, event, argument: look(frame, event, argument) if frame.f_code in codes else None)
    try:
        checkpoint.write(folder / "step-000002", state, progress)
        checkpoint.prune(folder, 1, None)
    finally:
        sys.settrace(None)
    assert set(seen) == {"step-000001", "step-000002"}
    assert [p.name for p in folder.iterdir()] == ["step-000002"]
