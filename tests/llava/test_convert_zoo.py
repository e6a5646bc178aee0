"""Every language model and tower of the zoo through export and merging: InternLM2's own layers, SigLIP's pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from llava.config import ConvertConfig
from llava.errors import ConfigError, WeightsError
from llava.hf_model import load
from llava.merge import merge
from llava.model.language import load_tokenizer
from llava.model.load import load_trained
from tests.llava import tiny_zoo as zoo
from tests.llava.convert_helpers import CLOSE, convert, our_logits, picture, their_logits, train
from tests.llava.test_model_xtuner import (
    clip_adapter,
    factors,
    ids,
    internlm2_modules,
    merged,
    write_adapter,
    write_projector,
)

QUESTION = "<image>\nWhat colour is it?"


@pytest.fixture(scope="module")
def internlm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.build_kind(tmp_path_factory.mktemp("internlm2"), "internlm2")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, internlm2: Path, tiny_vision: Path) -> Path:
    """As LLaVA-InternLM2-7B: adapters on InternLM2's own layers and its head, and on all of CLIP's."""
    folder = tmp_path_factory.mktemp("published")
    state = factors(zoo.internlm2_state(zoo.INTERNLM2), internlm2_modules())
    write_adapter(folder / "llm_adapter", state, str(internlm2))
    write_adapter(folder / "visual_encoder_adapter", clip_adapter(tiny_vision), str(tiny_vision))
    write_projector(folder / "projector")
    return folder


def expected_logits() -> torch.Tensor:
    base = zoo.internlm2_state(zoo.INTERNLM2)
    return zoo.internlm2_logits(zoo.INTERNLM2, merged(base, factors(base, internlm2_modules())), ids())


@torch.no_grad()
def text_logits(folder: Path) -> torch.Tensor:
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    logits: torch.Tensor = model(ids()[None]).logits[0, :, :400]
    return logits


def test_internlm2_as_xtuner_published_it_becomes_one_model(tmp_path: Path, published: Path, internlm2: Path) -> None:
    hf = convert(tmp_path / "hf", source=published, template="internlm2_chat")
    assert torch.max(torch.abs(text_logits(hf) - expected_logits())).item() <= CLOSE
    values = {"source": str(published), "output": str(tmp_path / "merged"), "template": "internlm2_chat"}
    merge(ConvertConfig.model_validate(values))
    assert json.loads((tmp_path / "merged/config.json").read_text())["model_type"] == "llama"
    again = convert(tmp_path / "again", source=tmp_path / "merged")
    assert torch.max(torch.abs(text_logits(again) - expected_logits())).item() <= CLOSE
    text = "What colour <|im_start|>user\n is it? 红"
    tokens = load_tokenizer(str(internlm2)).encode(text)
    for folder in (hf, tmp_path / "merged"):
        assert AutoTokenizer.from_pretrained(folder).encode(text) == tokens


def test_adapters_on_internlm2s_own_layers_go_there_and_back(tmp_path: Path, published: Path) -> None:
    run = convert(tmp_path / "run", source=published, to="run", dtype="keep", template="internlm2_chat")
    assert json.loads((run / "llava.json").read_text())["language"]["lora"]["head"] is True
    with torch.no_grad():
        logits = load_trained(run).model.language(ids()[None]).logits[0]
    assert torch.max(torch.abs(logits - expected_logits())).item() <= CLOSE
    back = convert(tmp_path / "back", source=run, to="xtuner", dtype="keep")
    for name in ("llm_adapter", "visual_encoder_adapter", "projector"):
        (before,), (after,) = (list((folder / name).glob("*.safetensors")) for folder in (published, back))
        before_state, after_state = load_file(before), load_file(after)
        assert before_state.keys() == after_state.keys()
        assert all(torch.equal(before_state[key], after_state[key]) for key in before_state)
    targets = json.loads((back / "llm_adapter/adapter_config.json").read_text())["target_modules"]
    assert targets == ["output", "w1", "w2", "w3", "wo", "wqkv"]


def test_adapters_that_were_never_one_layers_are_not_fused(tmp_path: Path, published: Path) -> None:
    from safetensors.torch import save_file

    run = convert(tmp_path / "run", source=published, to="run", dtype="keep", template="internlm2_chat")
    file = run / "language_adapter/adapter_model.safetensors"
    state = load_file(file)
    state["base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"] += 1
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="their first factors differ"):
        convert(tmp_path / "back", source=run, to="xtuner", dtype="keep")


@pytest.mark.parametrize("kind", ["internlm", "internlm2", *zoo.KINDS])
def test_every_language_model_of_the_zoo(tmp_path: Path, tiny_vision: Path, kind: str) -> None:
    language = zoo.build_kind(tmp_path / kind, kind)
    source = train(tmp_path / "model", language, tiny_vision, ("lora", "lora", "none"))
    ours = our_logits(load_trained(source), QUESTION)
    folder = convert(tmp_path / "hf", source=source)
    gap = torch.max(torch.abs(their_logits(folder, "What colour is it?")[:, : ours.shape[-1]] - ours)).item()
    assert gap <= CLOSE
    merge(ConvertConfig(source=str(source), output=str(tmp_path / "merged")))
    assert torch.max(torch.abs(our_logits(load_trained(tmp_path / "merged"), QUESTION) - ours)).item() <= CLOSE


def test_what_llavas_own_code_does_not_know_is_said(tmp_path: Path, tiny_vision: Path) -> None:
    language = zoo.build_kind(tmp_path / "phi3", "phi3")
    source = train(tmp_path / "model", language, tiny_vision, ("lora", "frozen", "none"))
    with pytest.raises(ConfigError, match="no language model of type phi3"):
        convert(tmp_path / "official", source=source, to="official")


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "tower"])
@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_siglip_is_exported_and_comes_back(tmp_path: Path, tiny_language: Path, tuning: str, whole: bool) -> None:
    vision = zoo.build_siglip(tmp_path / "siglip", whole)
    source = train(tmp_path / "model", tiny_language, vision, ("full", tuning, "none"))
    ours = our_logits(load_trained(source), QUESTION)
    folder = convert(tmp_path / "hf", source=source)
    gap = torch.max(torch.abs(their_logits(folder, "What colour is it?")[:, : ours.shape[-1]] - ours)).item()
    assert gap <= CLOSE
    theirs = AutoProcessor.from_pretrained(folder).image_processor(picture(), return_tensors="pt")["pixel_values"]
    assert torch.equal(theirs, load(folder, device="cpu").pixels([picture()]))
    run = convert(tmp_path / "run", source=folder, to="run", dtype="keep")
    again = our_logits(load_trained(run), QUESTION)
    assert torch.max(torch.abs(again - ours)).item() <= CLOSE
    back = convert(tmp_path / "back", source=run, to="hf", dtype="keep")
    before, after = (load_file(path / "model.safetensors") for path in (folder, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    if tuning != "frozen":
        with pytest.raises(ConfigError, match="CLIP's towers alone"):
            convert(tmp_path / "official", source=source, to="official")
