"""InternLM2 with its shared adapter factors, and a SigLIP tower, behind every strategy: the same numbers."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.model.load import load_trained
from llava.run_folder import RunFolder
from tests.llava.test_model_join import batch
from tests.llava.tiny_zoo import build_kind, build_siglip
from tests.llava.train_helpers import Bases, end, losses, make_job, start_ranks, train_here

missing = [name for name in ("c++", "ninja") if shutil.which(name) is None]
if importlib.util.find_spec("deepspeed") is None:
    missing.append("deepspeed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(missing), reason=f"DeepSpeed needs {', '.join(missing)}"),
]
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_records: Path) -> Bases:
    root = tmp_path_factory.mktemp("bases")
    return Bases(build_kind(root / "internlm2", "internlm2"), build_siglip(root / "siglip"), tiny_records)


def job(bases: Bases, folder: Path, **train: Any) -> Any:
    model = {
        "template": "internlm2_chat",
        "language": {"path": str(bases.language), "tuning": "lora", "lora": {**LORA, "head": True}},
        "vision": {"path": str(bases.vision), "tuning": "lora", "lora": LORA},
    }
    common = {"max_steps": 4, "learning_rate": 1e-3, "save_every_steps": 4, "gradient_checkpointing": True}
    return make_job(bases, folder, model, **common, **train)


def on_two_ranks(bases: Bases, folder: Path, strategy: str) -> RunFolder:
    code, output = end(start_ranks(job(bases, folder, strategy=strategy)))
    assert code == 0, output
    return RunFolder(folder)


@pytest.fixture(scope="module")
def plain(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two ranks, no ZeRO."""
    return on_two_ranks(bases, tmp_path_factory.mktemp("plain"), "ddp")


def test_two_ranks_do_the_work_of_one(bases: Bases, plain: RunFolder, tmp_path: Path) -> None:
    expected, seen = losses(train_here(job(bases, tmp_path))), losses(plain)
    assert expected[4][0] < expected[1][0]
    # Later updates are not compared: AdamW's first ones make much of the last digits of gradients near zero.
    assert seen[1] == pytest.approx(expected[1], rel=1e-6)


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_zero_gives_the_same_losses_and_model(bases: Bases, plain: RunFolder, tmp_path: Path, strategy: str) -> None:
    run = on_two_ranks(bases, tmp_path, strategy)
    expected, seen = losses(plain), losses(run)
    assert seen.keys() == expected.keys() == {1, 2, 3, 4}
    assert max(abs(seen[step][0] - expected[step][0]) for step in expected) <= 1e-5
    with torch.no_grad():
        one, other = (load_trained(folder.model).model(batch())[0].item() for folder in (plain, run))
    assert one == pytest.approx(other, rel=1e-5)
