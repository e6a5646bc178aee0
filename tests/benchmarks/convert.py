"""Memory and seconds of convert and merge as the model grows: ``python -m tests.benchmarks.convert [--shard 50MB]``.

Makes runs of about 20, 80 and 320 million parameters (LoRA on language model and tower, fp16 bases), and changes them
in fresh processes: convert to each layout, and merge. Peak is the largest resident memory (VmHWM), pages of mapped
files included; what imports take before the work begins is shown apart. Seconds are of the work, without imports.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIZES = {"20M": (384, 8), "80M": (640, 14), "320M": (1152, 18)}
"""Width and layers of the language model; the tower has a third of the layers."""
RANK = 16
MB = 1e6
WORKS: dict[str, list[str]] = {
    "convert to hf, merging": ["convert", "RUN", "OUT"],
    "convert to official, merging": ["convert", "RUN", "OUT", "--to", "official"],
    "convert to xtuner": ["convert", "RUN", "OUT", "--to", "xtuner"],
    "convert hf to run": ["convert", "HF", "OUT", "--to", "run"],
    "merge": ["merge", "RUN", "OUT"],
}
CHILD = """
import sys, time
import torch, transformers
from transformers import AutoModelForCausalLM, CLIPVisionModel, LlavaConfig, LlavaProcessor
from llava.export import layouts

def memory(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

before, start = memory("VmRSS"), time.perf_counter()
from llava.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    if end.code:
        raise
print(time.perf_counter() - start, before, memory("VmHWM"))
"""


def build(folder: Path, width: int, layers: int) -> int:
    """Bases with a tokenizer, and a run with adapters on both parts; returns the number of parameters."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from tests.llava.conftest import build_tokenizer
    from tests.llava.convert_helpers import train

    shape: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_attention_heads": width // 64,
    }
    tokenizer = build_tokenizer(folder / "language")
    words = LlamaConfig(vocab_size=max(8000, len(tokenizer)), num_hidden_layers=layers, **shape)
    eyes = CLIPVisionConfig(num_hidden_layers=layers // 3, image_size=56, patch_size=14, **shape)
    count = 0
    for name, model in (("language", LlamaForCausalLM(words)), ("vision", CLIPVisionModel(eyes))):
        count += sum(parameter.numel() for parameter in model.parameters())
        model.to(torch.float16).save_pretrained(folder / name)
    CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(
        folder / "vision"
    )
    train(folder / "run", folder / "language", folder / "vision", ("lora", "lora", "none"), dtype=torch.float16)
    return count


def measure(arguments: list[str]) -> tuple[float, int, int]:
    """Seconds, and resident memory in bytes before the work and at its peak, of a process of its own."""
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    seconds, before, peak = done.stdout.split()[-3:]
    return float(seconds), int(before), int(peak)


def weight_bytes(folder: Path) -> int:
    """Bytes of all weight files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shard", default="50MB", help="largest weight file")
    shard = parser.parse_args().shard
    print(f"MB of weights written, in files of at most {shard}, and of memory")
    print(f"{'size':>5} {'work':<29} {'seconds':>7} {'written':>8} {'imports':>8} {'peak':>6} {'peak - imports':>15}")
    for size, (width, layers) in SIZES.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            count = build(folder, width, layers)
            print(f"{size:>5} {count / 1e6:.1f} million parameters")
            for work, words in WORKS.items():
                places = {"RUN": folder / "run", "OUT": folder / "out", "HF": folder / "hf"}
                arguments = [str(places.get(word, word)) for word in words]
                took, before, peak = measure([*arguments, "--max-shard-size", shard])
                written = weight_bytes(folder / "out") / MB
                memory = f"{before / MB:8.0f} {peak / MB:6.0f} {(peak - before) / MB:15.0f}"
                print(f"{size:>5} {work:<29} {took:7.1f} {written:8.0f} {memory}", flush=True)
                if work == "convert to hf, merging":
                    (folder / "out").rename(folder / "hf")
                shutil.rmtree(folder / "out", ignore_errors=True)


if __name__ == "__main__":
    main()
