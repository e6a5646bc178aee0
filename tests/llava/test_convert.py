"""A converted folder is the trained model: the same logits in plain transformers, from the same text and picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from bitsandbytes.functional import dequantize_4bit
from safetensors import safe_open
from transformers import AutoProcessor, AutoTokenizer

from llava.config import ConvertJob, ModelConfig
from llava.convert import convert_job
from llava.errors import ConfigError
from llava.export.weights import byte_count
from llava.hf_model import load
from llava.model.load import build, load_trained
from llava.templates import TEMPLATES, get
from tests.llava.conftest import build_language
from tests.llava.convert_helpers import CLOSE, convert, our_logits, picture, their_logits, train
from tests.llava.tiny_hf import build_llava

KINDS = [
    ("frozen", "frozen", "none"),
    ("full", "full", "none"),
    ("lora", "lora", "none"),
    ("lora", "lora", "nf4"),
    ("frozen", "frozen", "nf4"),
]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_converted_folder_gives_the_trained_models_logits(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path, kind: tuple[str, str, str]
) -> None:
    source = train(tmp_path / "model", tiny_language, tiny_vision, kind)
    ours = our_logits(load_trained(source), "<image>\nWhat colour is it?")
    theirs = their_logits(convert(tmp_path / "hf", source=source), "What colour is it?")
    rows = ours.shape[-1]
    assert ours.shape[0] == theirs.shape[0]
    assert torch.max(torch.abs(theirs[:, :rows] - ours)).item() <= CLOSE
    assert theirs.shape[-1] == 448
    # The new rows are never the likeliest.
    assert int(theirs.argmax(-1).max()) < rows


def test_adapters_of_a_4_bit_run_also_go_onto_the_original_base(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path
) -> None:
    source = train(tmp_path / "model", tiny_language, tiny_vision, ("lora", "frozen", "nf4"))
    ours = our_logits(load_trained(source, original=True), "<image>\nWhat?")
    theirs = their_logits(convert(tmp_path / "hf", source=source, base="original"), "What?")
    as_trained = our_logits(load_trained(source), "<image>\nWhat?")
    assert torch.max(torch.abs(theirs[:, : ours.shape[-1]] - ours)).item() <= CLOSE
    assert torch.max(torch.abs(as_trained - ours)).item() > 100 * CLOSE


def test_a_4_bit_base_is_quantised_from_the_format_that_the_run_names(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path
) -> None:
    kind = ("frozen", "frozen", "nf4")
    source = train(tmp_path / "model", tiny_language, tiny_vision, kind, dtype=torch.bfloat16)
    folder = convert(tmp_path / "hf", source=source)
    layer = load_trained(source, torch.bfloat16).model.language.model.layers[0].self_attn.q_proj
    expected = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert expected.dtype == torch.bfloat16
    with safe_open(folder / "model.safetensors", "pt") as file:
        written = file.get_tensor("language_model.model.layers.0.self_attn.q_proj.weight")
    assert torch.equal(written, expected.float())


def test_tied_embeddings_stay_tied_and_positions_stay_scaled(tmp_path: Path, tiny_vision: Path) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500000.0}
    language = build_language(tmp_path / "language", tie_word_embeddings=True, rope_parameters=rope)
    source = train(tmp_path / "model", language, tiny_vision, ("lora", "frozen", "none"))
    folder = convert(tmp_path / "hf", source=source)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "language_model.lm_head.weight" not in file.keys()  # noqa: SIM118
    text = json.loads((folder / "config.json").read_text())["text_config"]
    assert (text["rope_theta"], text["rope_scaling"]) == (500000.0, {"rope_type": "linear", "factor": 2.0})
    ours = our_logits(load_trained(source), "<image>\nWhat?")
    assert torch.max(torch.abs(their_logits(folder, "What?")[:, : ours.shape[-1]] - ours)).item() <= CLOSE


def test_without_a_source_it_is_the_untrained_model_of_that_seed(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path
) -> None:
    wanted = {"language": str(tiny_language), "vision": str(tiny_vision), "output": str(tmp_path / "hf")}
    values = {"kind": "convert", "run_dir": str(tmp_path), "seed": 4, "convert": {**wanted, "dtype": "fp32"}}
    convert_job(ConvertJob.model_validate(values))
    model = ModelConfig.model_validate({"language": {"path": str(tiny_language)}, "vision": {"path": str(tiny_vision)}})
    start = build(model, torch.float32, seed=4)
    ours = our_logits(start, "<image>\nWhat?")
    assert torch.max(torch.abs(their_logits(tmp_path / "hf", "What?")[:, : ours.shape[-1]] - ours)).item() <= CLOSE
    with pytest.raises(ConfigError, match="a source, or both language and vision"):
        convert(tmp_path / "other", language=tiny_language)


def test_names_on_disk_are_those_of_the_hub_and_files_are_split(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path
) -> None:
    source = train(tmp_path / "model", tiny_language, tiny_vision, ("lora", "lora", "none"))
    folder = convert(tmp_path / "hf", source=source, max_shard_size="300KB")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert all(path.stat().st_size < 310_000 and path.stat().st_mode & 0o044 for path in files)
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for name in (
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.1.self_attn.q_proj.weight",
        "language_model.lm_head.weight",
        "vision_tower.vision_model.encoder.layers.2.mlp.fc1.bias",
        "vision_tower.vision_model.post_layernorm.weight",
        "multi_modal_projector.linear_2.bias",
    ):
        assert name in places
    assert not [name for name in places if "lora" in name or "base_layer" in name]
    ours = our_logits(load_trained(source), "<image>\nWhat?")
    assert torch.max(torch.abs(their_logits(folder, "What?")[:, : ours.shape[-1]] - ours)).item() <= CLOSE


def test_the_folder_says_what_it_is(tmp_path: Path, tiny_language: Path, tiny_vision: Path) -> None:
    source = train(tmp_path / "model", tiny_language, tiny_vision, ("frozen", "frozen", "none"), "chatml")
    folder = convert(tmp_path / "hf", source=source, dtype="fp16")
    manifest = json.loads((folder / "llavajob.json").read_text())
    assert (manifest["template"], manifest["square"], manifest["step"]) == ("chatml", "pad", 9)
    config = json.loads((folder / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlavaForConditionalGeneration"], "float16")
    assert config["text_config"]["rope_theta"] == 10000.0
    # What transformers 4 fails on, or does not know.
    assert "image_processor" not in json.loads((folder / "processor_config.json").read_text())
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert config["image_token_index"] == tokenizer.convert_tokens_to_ids("<image>") == 400
    before = AutoTokenizer.from_pretrained(tiny_language).encode("What colour ")
    assert tokenizer.encode("What colour <image>?") == [*before, 400, *tokenizer.encode("?")]
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    llava = load(folder, device="cpu", precision="fp32")
    assert (llava.template, llava.square) == ("chatml", "pad")


def test_processor_and_own_pixels_are_equal(tmp_path: Path, tiny_language: Path, tiny_vision: Path) -> None:
    source = train(tmp_path / "model", tiny_language, tiny_vision, ("frozen", "frozen", "none"))
    folder = convert(tmp_path / "hf", source=source)
    theirs = AutoProcessor.from_pretrained(folder).image_processor(picture(), return_tensors="pt")["pixel_values"]
    assert torch.equal(theirs, load(folder, device="cpu").pixels([picture()]))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_chat_template_writes_what_was_trained(tiny_language: Path, name: str) -> None:
    from llava.export.chat_template import chat_template

    tokenizer, template = AutoTokenizer.from_pretrained(tiny_language), get(name)
    text = chat_template(template, has_bos=True)
    turns = [("What colour?", "red"), ("How many?", "two"), ("Tell me {a} 'word' \"here\".", None)]
    messages: list[dict[str, Any]] = []
    expected = ""
    for number, (question, answer) in enumerate(turns):
        picture_tag = "<image>\n" if number == 0 else ""
        parts: list[dict[str, str]] = [{"type": "image"}] if picture_tag else []
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
        if number == 0 or (template.bos_after_eos and not template.suffix_as_eos):
            expected += tokenizer.bos_token
        expected += template.question(picture_tag + question, number)
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
            expected += template.answer(answer) + ("" if template.suffix_as_eos else tokenizer.eos_token) + template.sep
    written = tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False, add_generation_prompt=True)
    assert written == expected


def test_an_existing_folder_is_replaced_only_when_it_is_ours(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path
) -> None:
    source = train(tmp_path / "model", tiny_language, tiny_vision, ("frozen", "frozen", "none"))
    foreign = tmp_path / "precious"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match="exists and is not a folder that convert wrote"):
        convert(foreign, source=source)
    assert (foreign / "thesis.tex").read_text() == "years"
    with pytest.raises(ConfigError, match="not a folder that convert wrote"):
        convert(source, source=source)
    output = convert(tmp_path / "hf", source=source)
    (output / "stale").write_text("")
    convert(output, source=source, dtype="fp16")
    assert not (output / "stale").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["hf", "model", "precious"]


def test_bases_that_moved_can_be_named(tmp_path: Path, tiny_language: Path, tiny_vision: Path) -> None:
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(tiny_language, moved)
    source = train(tmp_path / "model", moved, tiny_vision, ("lora", "frozen", "none"))
    elsewhere = tmp_path / "elsewhere"
    moved.rename(elsewhere)
    with pytest.raises(ConfigError, match="moved"):
        convert(tmp_path / "hf", source=source)
    folder = convert(tmp_path / "hf", source=source, language=elsewhere)
    elsewhere.rename(moved)
    ours = our_logits(load_trained(source), "<image>\nWhat?")
    assert torch.max(torch.abs(their_logits(folder, "What?")[:, : ours.shape[-1]] - ours)).item() <= CLOSE


def test_weights_too_large_for_fp16_are_refused(tmp_path: Path, tiny_language: Path, tiny_vision: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = train(tmp_path / "model", tiny_language, tiny_vision, ("frozen", "frozen", "none"))
    path = source / "projector" / "model.safetensors"
    weights = load_file(path)
    weights["linear_1.bias"][3] = 1e6
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"multi_modal_projector\.linear_1\.bias does not fit into torch\.float16"):
        convert(tmp_path / "hf", source=source, dtype="fp16")
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["model"]


def test_sizes_are_read_or_refused() -> None:
    assert [byte_count(text) for text in ("5GB", "1.5 MB", "2KiB", "7b")] == [5 * 10**9, 1_500_000, 2048, 7]
    for wrong in ("", "5", "GB", "-1GB", "0MB"):
        with pytest.raises(ConfigError, match="is not a size"):
            byte_count(wrong)


def test_the_command_line(tmp_path: Path, tiny_language: Path, tiny_vision: Path) -> None:
    config = tmp_path / "config.yaml"
    wanted = {"source": str(tmp_path / "nowhere"), "output": str(tmp_path / "hf")}
    config.write_text(yaml.safe_dump({"kind": "convert", "run_dir": str(tmp_path / "run"), "convert": wanted}))
    done = subprocess.run(
        [sys.executable, "-m", "llava.convert", "--config", str(config)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no trained model in" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_from_elsewhere_is_not_ours_to_replace(tmp_path: Path, tiny_language: Path, tiny_vision: Path) -> None:
    foreign = build_llava(tmp_path / "hf", tiny_language, tiny_vision)
    with pytest.raises(ConfigError, match="not a folder that convert wrote"):
        convert(foreign, language=tiny_language, vision=tiny_vision)
