"""Merged adapters: the same logits, every layout, and never twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoTokenizer, CLIPVisionModel, LlamaForCausalLM

from llava.config import ConvertConfig
from llava.errors import ConfigError, WeightsError
from llava.export.layouts import detect
from llava.export.parts import read_said
from llava.merge import merge
from llava.model.load import load_trained, read_manifest
from tests.llava.convert_helpers import CLOSE, convert, our_logits, their_logits, train

QUESTION = "<image>\nWhat?"


def merged(output: Path, which: str = "both", **values: Any) -> Path:
    wanted = {"output": str(output), **{k: str(v) if isinstance(v, Path) else v for k, v in values.items()}}
    merge(ConvertConfig.model_validate(wanted), which)
    return output


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return torch.max(torch.abs(one - other)).item()


@pytest.mark.parametrize("which", ["both", "language", "vision"])
@pytest.mark.parametrize("layout", ["run", "xtuner"])
def test_a_merged_folder_gives_the_unmerged_models_logits(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path, layout: str, which: str
) -> None:
    trained = train(tmp_path / "trained", tiny_language, tiny_vision, ("lora", "lora", "none"))
    source = convert(tmp_path / "source", source=trained, to=layout, dtype="keep")
    folder = merged(tmp_path / "merged", which, source=source)
    assert detect(folder) == layout
    run = folder if layout == "run" else convert(tmp_path / "run", source=folder, to="run", dtype="keep")
    tuned = {role: read_manifest(run)[role]["tuning"] for role in ("language", "vision")}
    assert tuned == {role: "full" if which in ("both", role) else "lora" for role in ("language", "vision")}
    ours = our_logits(load_trained(trained), QUESTION)
    assert gap(our_logits(load_trained(run), QUESTION), ours) <= CLOSE
    hf = convert(tmp_path / "hf", source=folder)
    assert gap(their_logits(hf, "What?")[:, : ours.shape[-1]], ours) <= CLOSE
    plain = train(tmp_path / "plain", tiny_language, tiny_vision, ("frozen", "frozen", "none"))
    assert gap(our_logits(load_trained(plain), QUESTION), ours) > 100 * CLOSE


@pytest.mark.parametrize("base", ["as_trained", "original"])
def test_adapters_of_a_4_bit_run_go_onto_the_base_that_is_chosen(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path, base: str
) -> None:
    source = train(tmp_path / "model", tiny_language, tiny_vision, ("lora", "lora", "nf4"))
    folder = merged(tmp_path / "merged", source=source, base=base)
    assert read_manifest(folder)["language"]["quantize"] == "none"
    ours = our_logits(load_trained(source, original=base == "original"), QUESTION)
    assert gap(our_logits(load_trained(folder), QUESTION), ours) <= CLOSE
    other = our_logits(load_trained(source, original=base != "original"), QUESTION)
    assert gap(ours, other) > 100 * CLOSE


def bare(folder: Path, model: Any, targets: list[str], **values: Any) -> Any:
    """An adapter folder by peft alone."""
    torch.manual_seed(3)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, **values))
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_a_bare_adapter_onto_its_base(tmp_path: Path, tiny_language: Path, tiny_vision: Path, rslora: bool) -> None:
    language = bare(
        tmp_path / "words", LlamaForCausalLM.from_pretrained(tiny_language), ["q_proj", "down_proj"], use_rslora=rslora
    )
    vision = bare(tmp_path / "eyes", CLIPVisionModel.from_pretrained(tiny_vision), ["q_proj", "fc1"], use_rslora=rslora)
    one = merged(tmp_path / "one", source=tmp_path / "words", language=tiny_language)
    two = merged(tmp_path / "two", source=tmp_path / "eyes", vision=tiny_vision)
    ids, pixels = torch.arange(30).view(2, 15), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert gap(LlamaForCausalLM.from_pretrained(one)(ids).logits, language(ids).logits) <= CLOSE
        seen = CLIPVisionModel.from_pretrained(two)(pixels).last_hidden_state
        assert gap(seen, vision(pixels).last_hidden_state) <= CLOSE
    words = [AutoTokenizer.from_pretrained(folder).encode("What colour?") for folder in (one, tiny_language)]
    assert words[0] == words[1]
    assert (
        AutoImageProcessor.from_pretrained(two).crop_size == AutoImageProcessor.from_pretrained(tiny_vision).crop_size
    )
    with pytest.raises(ConfigError, match="holds vision adapters, not language adapters"):
        merged(tmp_path / "three", "language", source=tmp_path / "eyes", vision=tiny_vision)


def test_nothing_is_merged_twice(tmp_path: Path, tiny_language: Path, tiny_vision: Path) -> None:
    source = train(tmp_path / "model", tiny_language, tiny_vision, ("lora", "lora", "none"))
    folder = merged(tmp_path / "merged", source=source)
    assert read_said(folder / "language")["merged"].keys() == {"language"}
    with pytest.raises(ConfigError, match=r"adapters of .*merged are merged already \(language, vision\)"):
        merged(tmp_path / "again", source=folder)
    # The merged parts, named as bases of the adapters that they hold: by merge, by convert, from another layout.
    xtuner = convert(tmp_path / "xtuner", source=source, to="xtuner", dtype="keep")
    for adapters in (source, xtuner):
        for role in ("language", "vision"):
            with pytest.raises(ConfigError, match=f"already holds these {role} adapters(.|\n)*--{role}"):
                merged(tmp_path / "again", source=adapters, **{role: folder / role})
            with pytest.raises(ConfigError, match=f"already holds these {role} adapters"):
                convert(tmp_path / "again", source=adapters, **{role: folder / role})
    assert not (tmp_path / "again").exists()
    # The mark travels through every layout, and a bare adapter meets it too.
    for to in ("hf", "official", "xtuner", "run"):
        folder = convert(tmp_path / to, source=folder, to=to, dtype="keep")
        assert read_said(folder)["merged"].keys() == {"language", "vision"}
    with pytest.raises(ConfigError, match="already holds these language adapters"):
        merged(tmp_path / "again", source=source / "language_adapter", language=folder / "language")
    # Other adapters may go on top.
    more = train(tmp_path / "more", folder / "language", tiny_vision, ("lora", "frozen", "none"))
    state = load_file(more / "language_adapter/adapter_model.safetensors")
    save_file({n: 2 * t for n, t in state.items()}, more / "language_adapter/adapter_model.safetensors")
    twice = merged(tmp_path / "twice", source=more)
    assert len(read_said(twice / "language")["merged"]["language"]) == 2


def test_what_cannot_be_merged_is_said(tmp_path: Path, tiny_language: Path, tiny_vision: Path) -> None:
    frozen = train(tmp_path / "frozen", tiny_language, tiny_vision, ("frozen", "frozen", "none"))
    with pytest.raises(ConfigError, match="holds no adapters"):
        merged(tmp_path / "out", source=frozen)
    source = train(tmp_path / "model", tiny_language, tiny_vision, ("lora", "frozen", "none"))
    with pytest.raises(ConfigError, match="holds no vision adapters"):
        merged(tmp_path / "out", "vision", source=source)
    with pytest.raises(ConfigError, match="part 'all' is none of both, language, vision"):
        merged(tmp_path / "out", "all", source=source)
    ours = merged(tmp_path / "ours", source=source)
    with pytest.raises(ConfigError, match=r"output .*ours holds language .*ours/language"):
        merged(ours, source=source, language=ours / "language")
    adapters = source / "language_adapter"
    state = load_file(adapters / "adapter_model.safetensors")
    changes = {
        r"change model\.layers\.0\.self_attn\.qq\.weight \[64, 64\], which is not there": ("q_proj", "qq"),
        "that find no home": ("lora_B", "lora_C"),
        r"mlp\.down_proj\.weight \[64, 64\], which is \(64, 128\)": ("self_attn.q_proj", "mlp.down_proj"),
    }
    for message, (old, new) in changes.items():
        changed = {name.replace(old, new): tensor for name, tensor in state.items() if new not in name}
        save_file(changed, adapters / "adapter_model.safetensors", metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=message):
            merged(tmp_path / "out", source=source)
    config = json.loads((adapters / "adapter_config.json").read_text())
    for change in ({"use_dora": True}, {"bias": "all"}, {"peft_type": "LOHA"}, {"rank_pattern": {"q_proj": 2}}):
        (adapters / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(ConfigError, match="adapters of another kind than plain LoRA"):
            merged(tmp_path / "out", source=source)
    assert not (tmp_path / "out").exists()


def test_by_hand(tmp_path: Path, tiny_language: Path, tiny_vision: Path) -> None:
    source = train(tmp_path / "model", tiny_language, tiny_vision, ("lora", "lora", "none"))
    words = ["merge", source, tmp_path / "out", "--part", "vision", "--dtype", "bf16", "--max-shard-size", "90KB"]
    done = subprocess.run([sys.executable, "-m", "llava", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shards = sorted((tmp_path / "out/vision").glob("*.safetensors"))
    assert len(shards) > 1
    assert {tensor.dtype for path in shards for tensor in load_file(path).values()} == {torch.bfloat16}
    assert read_manifest(tmp_path / "out")["language"]["tuning"] == "lora"
    with pytest.raises(ConfigError, match=r"merged already \(vision\)"):
        merged(tmp_path / "again", "vision", source=tmp_path / "out")
