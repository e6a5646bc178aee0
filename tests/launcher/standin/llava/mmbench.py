"""Stands in for an evaluation: a shard appends its answers; the merge counts them."""

import os
import sys
import time
from pathlib import Path

import yaml

config = yaml.safe_load(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
folder = Path(config["run_dir"]) / "eval" / "mmbench"
(folder / "answers").mkdir(parents=True, exist_ok=True)
if "--merge" in sys.argv:
    answers = sorted(p.read_text() for p in (folder / "answers").iterdir())
    (folder / "report.txt").write_text(f"answered by {len(answers)} shards, {config['eval']['shards']} asked for\n")
    sys.exit(0)
shard = sys.argv[sys.argv.index("--shard") + 1]
time.sleep(float(os.environ.get("STANDIN_STEP_S", "0.05")))
if os.environ.get("STANDIN_FAIL") == f"shard:{shard}":
    os.kill(os.getpid(), 9)
(folder / "answers" / f"{shard}.jsonl").write_text("{}\n")
print("gpus", os.environ.get("CUDA_VISIBLE_DEVICES"))
