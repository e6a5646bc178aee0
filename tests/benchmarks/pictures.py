"""How fast does ``llava data check`` open pictures: ``python -m tests.benchmarks.pictures [COUNT] [PROCESSES]``.

Draws JPEGs of 336 to 640 pixels with the detail of photographs, checks them through the command, and prints pictures
a minute and the CPU time of all its processes. The pictures have just been written, so they come from memory: what is
measured is the work on the processor.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def draw(folder: Path, count: int) -> int:
    """Write pictures and their records; returns the pictures' bytes."""
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    records = []
    for number in range(count):
        width, height = (int(side) for side in random.integers(336, 641, 2))
        coarse = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = smooth + random.integers(-20, 20, smooth.shape, dtype=np.int16)
        name = f"{number:06d}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / "images" / name, quality=90)
        asked = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "noise"}]
        records.append({"id": str(number), "image": name, "conversations": asked})
    (folder / "records.json").write_text(json.dumps(records))
    return sum(path.stat().st_size for path in (folder / "images").iterdir())


def main() -> None:
    """Print the figures."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    processes = sys.argv[2] if len(sys.argv) > 2 else str(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = draw(folder, count)
        command = ["data", "check", "--records", str(folder / "records.json"), "--images", str(folder / "images")]
        command += ["--processes", processes, "--report", str(folder / "report")]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "llava", *command], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads((folder / "report" / "report.json").read_text())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rate = report["sections"][1]["numbers"]["pictures a minute"]
    print(f"{count:,} JPEGs, {size / count / 1000:.0f} kB each, {processes} processes, load {os.getloadavg()[0]:.1f}")
    print(
        f"{rate:,} pictures a minute while opening; whole command {seconds:.1f} s, {60 * count / seconds:,.0f} a minute"
    )
    print(f"CPU {cpu:.1f} s, {1000 * cpu / count:.2f} ms a picture, largest process {after.ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
