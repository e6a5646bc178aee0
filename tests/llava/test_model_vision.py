"""Towers of the zoo: which hidden state, how many features, and pixels equal to the processor's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, SiglipVisionModel

from llava.config import ModelConfig, VisionConfig
from llava.data.images import prepare
from llava.errors import ConfigError, WeightsError
from llava.model.load import build, load_trained, save_trained
from llava.model.vision import VisionTower, load_processor, load_vision, output_size
from tests.llava.test_model_join import batch, config, samples, trainable, trained
from tests.llava.tiny_zoo import build_siglip

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_siglip(tmp_path_factory.mktemp("siglip"))


def tower(path: Path, layer: int = -2) -> VisionTower:
    model = load_vision(VisionConfig(path=str(path)), str(path), torch.float32, None, "cpu")
    return VisionTower(model, layer, [0.5] * 3, [0.5] * 3)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("layer", [-2, -1, 1, 3])
def test_siglip_gives_every_patch_of_the_layer_asked_for(siglip: Path, layer: int) -> None:
    pixels = batch().pixels
    ours = tower(siglip, layer)
    hidden = SiglipVisionModel.from_pretrained(siglip)(ours.normalise(pixels), output_hidden_states=True).hidden_states
    assert torch.equal(ours(pixels), hidden[layer])
    assert (ours.class_token, ours.patches, ours(pixels).shape[1:]) == (False, 16, (16, 64))
    assert not any(".head." in name for name, _ in ours.named_parameters())


@pytest.mark.parametrize(
    ("side", "patch", "features"), [(336, 14, 576), (224, 14, 256), (384, 14, 729), (256, 16, 256)]
)
def test_features_of_a_picture_come_from_the_tower(side: int, patch: int, features: int) -> None:
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with torch.device("meta"):
        model = CLIPVisionModel(CLIPVisionConfig(**shape, image_size=side, patch_size=patch))
    assert VisionTower(model, -1, MEAN, STD).patches == features
    assert model.embeddings.num_positions == features + 1


def test_the_tower_alone_and_the_whole_siglip_are_the_same(siglip: Path, tmp_path: Path) -> None:
    alone = build_siglip(tmp_path, whole=False)
    pixels = batch().pixels
    assert torch.equal(tower(alone)(pixels), tower(siglip)(pixels))


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (336, 336), (500, 375), (7, 100)])
def test_clip_pixels_are_those_of_pil_step_by_step(size: tuple[int, int]) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    image = noise(*size)
    short = min(size)
    wide, high = (336 if side == short else int(336 * side / short) for side in size)
    left, top = (wide - 336) // 2, (high - 336) // 2
    expected = np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC))[top : top + 336, left : left + 336]
    assert np.array_equal(prepare(image, processor, "crop"), expected.transpose(2, 0, 1))
    square = Image.new("RGB", (max(size),) * 2, (122, 116, 104))
    square.paste(image, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
    expected = np.asarray(square.resize((336, 336), Image.Resampling.BICUBIC))
    assert np.array_equal(prepare(image, processor, "pad"), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(40, 30), (30, 41)])
def test_siglip_pixels_are_those_of_its_own_processor(siglip: Path, size: tuple[int, int]) -> None:
    processor, image = load_processor(str(siglip)), noise(*size)
    assert (type(processor).__name__, output_size(processor)) == ("SiglipImageProcessorPil", (32, 32))
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.5] * 3, [0.5] * 3)
    squeezed = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(prepare(image, processor, "crop"), squeezed.transpose(2, 0, 1))
    square = Image.new("RGB", (max(size),) * 2, (127, 127, 127))
    square.paste(image, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
    padded = prepare(image, processor, "pad")
    assert np.array_equal(padded, np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1))
    expected = processor(images=square, return_tensors="pt").pixel_values
    seen = tower(siglip).normalise(torch.from_numpy(padded)[None])
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)


SIGLIP_LINEARS = [*(f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2"]


@pytest.mark.parametrize(
    ("tuning", "quantize"), [("frozen", "nf4"), ("lora", "none"), ("lora", "nf4"), ("full", "none")]
)
def test_siglip_trains_what_is_used_of_it(tiny_language: Path, siglip: Path, tuning: str, quantize: str) -> None:
    values = config(tiny_language, siglip, seeing=tuning).model_dump()
    values["vision"]["quantize"] = quantize
    loaded = build(ModelConfig.model_validate(values), torch.float32)
    names = {name for name in trainable(loaded.model) if name.startswith("vision.")}
    if tuning == "lora":
        modules = [f"vision.clip.encoder.layers.{n}.{name}" for n in range(2) for name in SIGLIP_LINEARS]
        assert names == {f"{module}.lora_{ab}.default.weight" for module in modules for ab in "AB"}
    if tuning == "full":
        left = {name for name, _ in loaded.model.vision.named_parameters()} - {n.removeprefix("vision.") for n in names}
        assert left == {"clip.post_layernorm.weight", "clip.post_layernorm.bias"}
    loss, _ = loaded.model(batch(samples()))
    loss.backward()
    assert all(p.grad is not None for p in trainable(loaded.model).values())


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_trained_siglip_comes_back_whole(tiny_language: Path, siglip: Path, tmp_path: Path, tuning: str) -> None:
    loaded = build(config(tiny_language, siglip, seeing=tuning), torch.float32)
    save_trained(loaded, trained(loaded), tmp_path / "model")
    again = load_trained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again.model.vision(batch().pixels), loaded.model.eval().vision(batch().pixels))
    if tuning == "full":
        _, info = SiglipVisionModel.from_pretrained(tmp_path / "model" / "vision", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]


def test_pickled_bases_need_a_word_that_travels(tiny_language: Path, tiny_vision: Path, tmp_path: Path) -> None:
    parts = {}
    for name, folder in (("language", tiny_language), ("vision", tiny_vision)):
        parts[name] = shutil.copytree(folder, tmp_path / name)
        torch.save(load_file(folder / "model.safetensors"), parts[name] / "pytorch_model.bin")
        (parts[name] / "model.safetensors").unlink()
    values = config(parts["language"], parts["vision"]).model_dump()
    for name in parts:
        with pytest.raises(ConfigError, match="are pickles"):
            build(ModelConfig.model_validate(values), torch.float32)
        values["vision" if name == "language" else "language"]["allow_pickle"] = True
    loaded = build(ModelConfig.model_validate(values), torch.float32)
    save_trained(loaded, trained(loaded), tmp_path / "model")
    again = load_trained(tmp_path / "model")
    with torch.no_grad():
        assert again.model(batch())[0].item() == loaded.model.eval()(batch())[0].item()


def test_other_towers_and_processors_are_refused(siglip: Path, tiny_language: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="of type 'llama', no tower that is known"):
        tower(tiny_language)
    build_siglip(tmp_path / "wrong", side=40)
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (siglip / file).exists():
            (tmp_path / "wrong" / file).write_text((siglip / file).read_text())
    with pytest.raises(ConfigError, match="does not make pictures of 40 x 40"):
        build(config(tiny_language, tmp_path / "wrong"), torch.float32)
    values: dict[str, Any] = json.loads((siglip / "config.json").read_text())
    values["vision_config"]["intermediate_size"] = 120
    broken = build_siglip(tmp_path / "broken")
    (broken / "config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match="do not fit its config"):
        tower(broken)
