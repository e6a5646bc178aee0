"""The join against slow and obvious versions of itself; what trains by name; what a trained folder gives back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.config import ModelConfig
from llava.data.collate import IGNORE, IMAGE_TOKEN, Batch, Sample, collate
from llava.errors import ConfigError, WeightsError
from llava.model.load import Loaded, build, load_trained, read_manifest, save_trained, trainable

SIDE, PATCHES = 32, 16
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}


def config(language: Path, vision: Path, tuning: str = "frozen", seeing: str = "frozen", **more: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "language": {"path": str(language), "tuning": tuning, "lora": LORA, **more},
            "vision": {"path": str(vision), "tuning": seeing, "lora": LORA},
        }
    )


def samples() -> list[Sample]:
    """Pictures in front, in the middle, and none; different lengths."""
    rng = np.random.default_rng(0)

    def sample(before: int, picture: bool, after: int) -> Sample:
        ids = [*rng.integers(10, 300, before), *([IMAGE_TOKEN] if picture else []), *rng.integers(10, 300, after)]
        labels = [IGNORE] * (len(ids) - 2) + ids[-2:]
        pixels = rng.integers(0, 256, (3, SIDE, SIDE)).astype(np.uint8) if picture else None
        return Sample(np.array(ids, np.int32), np.array(labels, np.int32), pixels)

    return [sample(1, True, 6), sample(4, True, 3), sample(9, False, 0), sample(2, True, 12)]


def batch(rows: list[Sample] | None = None) -> Batch:
    return collate(rows if rows is not None else samples(), PATCHES, SIDE)


@pytest.fixture(scope="module")
def frozen(tiny_language: Path, tiny_vision: Path) -> Loaded:
    return build(config(tiny_language, tiny_vision), torch.float32, seed=3)


def naive_loss(loaded: Loaded, rows: list[Sample]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One sample at a time, token by token, with the full logits; and the embeddings it saw."""
    model, total, seen = loaded.model, torch.zeros(()), []
    for row in rows:
        pieces, labels = [], []
        for token, label in zip(row.ids.tolist(), row.labels.tolist(), strict=True):
            if token == IMAGE_TOKEN:
                assert row.picture is not None
                pieces.append(model.projector(model.vision(torch.from_numpy(row.picture)[None]))[0])
                labels += [IGNORE] * PATCHES
            else:
                pieces.append(model.language.get_input_embeddings()(torch.tensor([token])))
                labels.append(label)
        seen.append(torch.cat(pieces))
        logits = model.language(inputs_embeds=seen[-1][None]).logits[0]
        total = total + torch.nn.functional.cross_entropy(
            logits[:-1], torch.tensor(labels[1:]), ignore_index=IGNORE, reduction="sum"
        )
    return total, seen


def test_splice_equals_a_naive_loop(frozen: Loaded) -> None:
    rows = samples()
    laid_out = batch(rows)
    spliced = frozen.model.splice(laid_out, frozen.model.see(laid_out)).view(laid_out.samples, laid_out.length, -1)
    _, seen = naive_loss(frozen, rows)
    assert laid_out.length == max(len(s) for s in seen)
    assert laid_out.tokens == sum(len(s) for s in seen)
    for row, expected in zip(spliced, seen, strict=True):
        torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-5, atol=1e-6)
        assert not row[len(expected) :].any()


def test_loss_at_label_positions_equals_the_full_logits_loss(frozen: Loaded) -> None:
    loss, count = frozen.model(batch())
    expected, _ = naive_loss(frozen, samples())
    assert count == 8
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_head_runs_on_supervised_positions_only(frozen: Loaded) -> None:
    rows: list[int] = []
    head = frozen.model.language.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    frozen.model(batch())
    hook.remove()
    assert rows == [8]


def test_text_only_batch_never_runs_the_tower(frozen: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    text = [s for s in samples() if s.picture is None]
    expected, _ = naive_loss(frozen, text)
    monkeypatch.setattr(frozen.model.vision, "forward", lambda pixels: pytest.fail("the tower ran"))
    loss, count = frozen.model(batch(text))
    assert count == 2
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("idle", ["projector", "tower"])
def test_idle_parts_get_zero_gradients_where_ranks_must_match(frozen: Loaded, idle: Any) -> None:
    text = [s for s in samples() if s.picture is None]
    frozen.model.idle = idle
    try:
        loss, _ = frozen.model(batch(text))
        grads = torch.autograd.grad(loss, list(frozen.model.projector.parameters()))
        assert all(not g.any() for g in grads)
        frozen.model.idle = "skip"
        assert loss.item() == frozen.model(batch(text))[0].item()
    finally:
        frozen.model.idle = "skip"


def test_sample_with_a_bad_picture_teaches_nothing(frozen: Loaded) -> None:
    from llava.data.collate import BadPicture

    rows = samples()
    rows[1] = dataclasses.replace(rows[1], picture=None, bad=BadPicture("x.png", "broken"))
    laid_out = batch(rows)
    loss, count = frozen.model(laid_out)
    expected, _ = naive_loss(frozen, [rows[0], rows[2], rows[3]])
    assert (count, laid_out.samples, [b.path for b in laid_out.bad]) == (6, 4, ["x.png"])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    only_bad = batch([rows[1]])
    loss, count = frozen.model(only_bad)
    assert (loss.item(), count) == (0.0, 0)


def test_tower_gives_the_layer_asked_for_without_running_later_ones(frozen: Loaded, tiny_vision: Path) -> None:
    from transformers import CLIPVisionModel

    pixels = batch().pixels
    reference = CLIPVisionModel.from_pretrained(tiny_vision)
    values = frozen.model.vision.normalise(pixels)
    hidden = reference(values, output_hidden_states=True).hidden_states
    assert torch.equal(frozen.model.vision(pixels), hidden[-2][:, 1:])
    assert len(frozen.model.vision.clip.encoder.layers) == 2
    assert not any("layers.2." in name for name in frozen.model.state_dict())


def test_pixels_are_normalised_as_the_image_processor_does(frozen: Loaded) -> None:
    from PIL import Image

    pixels = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    expected = frozen.processor(images=Image.fromarray(pixels), return_tensors="pt").pixel_values
    seen = frozen.model.vision.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)


def test_frozen_tower_has_no_graph(frozen: Loaded) -> None:
    assert frozen.model.vision(batch().pixels).grad_fn is None
    loss, _ = frozen.model(batch())
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in frozen.model.projector.parameters())
    frozen.model.zero_grad()


PROJECTOR = {f"projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
LANGUAGE_LINEARS = {
    f"language.model.layers.{n}.{name}"
    for n in range(2)
    for name in (
        *(f"self_attn.{p}_proj" for p in "qkvo"),
        *(f"mlp.{p}_proj" for p in ("gate", "up", "down")),
    )
}
VISION_LINEARS = {
    f"vision.clip.encoder.layers.{n}.{name}"
    for n in range(2)  # of three: the last is not used
    for name in (*(f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
}


def adapters(names: set[str]) -> set[str]:
    return {f"{name}.lora_{ab}.default.weight" for name in names for ab in "AB"}


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_lora_trains_every_linear_but_the_head(tiny_language: Path, tiny_vision: Path, quantize: str) -> None:
    loaded = build(config(tiny_language, tiny_vision, "lora", "lora", quantize=quantize), torch.float32)
    names = trainable(loaded.model)
    assert names.keys() == PROJECTOR | adapters(LANGUAGE_LINEARS) | adapters(VISION_LINEARS)
    assert all(p.dtype == torch.float32 for p in names.values())
    loss, _ = loaded.model(batch())
    loss.backward()
    assert all(p.grad is not None for p in names.values()), "a weight that trains got no gradient"


def test_nf4_holds_every_linear_but_the_head_in_4_bits(tiny_language: Path, tiny_vision: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    loaded = build(config(tiny_language, tiny_vision, quantize="nf4"), torch.float32)
    in_4_bits = {name for name, module in loaded.model.named_modules() if isinstance(module, Linear4bit)}
    assert in_4_bits == LANGUAGE_LINEARS
    assert trainable(loaded.model).keys() == PROJECTOR
    loss, _ = loaded.model(batch())
    loss.backward()
    assert loaded.model.projector.linear_1.weight.grad is not None


def test_full_tuning_trains_all_that_is_used(tiny_language: Path, tiny_vision: Path) -> None:
    loaded = build(config(tiny_language, tiny_vision, "full", "full"), torch.float32)
    names = trainable(loaded.model)
    left = {name for name, _ in loaded.model.named_parameters()} - names.keys()
    assert left == {"vision.clip.post_layernorm.weight", "vision.clip.post_layernorm.bias"}
    loss, _ = loaded.model(batch())
    loss.backward()
    assert all(p.grad is not None for p in names.values())


def trained(loaded: Loaded) -> dict[str, torch.Tensor]:
    """What training could have made of the weights."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainable(loaded.model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return {name: parameter.detach().clone() for name, parameter in trainable(loaded.model).items()}


@pytest.mark.parametrize(
    ("tuning", "seeing", "quantize", "folders"),
    [
        ("frozen", "frozen", "none", set()),
        ("lora", "lora", "nf4", {"language_adapter", "vision_adapter"}),
        ("full", "full", "none", {"language", "vision"}),
    ],
)
def test_a_trained_folder_gives_the_same_model_back(
    tiny_language: Path, tiny_vision: Path, tmp_path: Path, tuning: str, seeing: str, quantize: str, folders: set[str]
) -> None:
    loaded = build(config(tiny_language, tiny_vision, tuning, seeing, quantize=quantize), torch.float32)
    state = trained(loaded)
    save_trained(dataclasses.replace(loaded, step=7, square="crop"), state, tmp_path / "model")
    again = load_trained(tmp_path / "model")
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"llava.json", "projector"} | folders
    assert (again.step, again.square) == (7, "crop")
    with torch.no_grad():
        assert again.model(batch())[0].item() == loaded.model.eval()(batch())[0].item()
    keys = load_file(tmp_path / "model" / "projector" / "model.safetensors").keys()
    assert keys == {"linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"}
    manifest = read_manifest(tmp_path / "model")
    assert manifest["language"]["path"] == str(tiny_language)
    assert manifest["language"]["quantize"] == quantize
    assert not list(tmp_path.glob(".model*")), "something was left aside"


def test_adapter_folders_are_read_by_peft_on_the_whole_bases(
    tiny_language: Path, tiny_vision: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, CLIPVisionModel

    loaded = build(config(tiny_language, tiny_vision, "lora", "lora"), torch.float32)
    save_trained(loaded, trained(loaded), tmp_path / "model")
    ids = torch.arange(10, 20)[None]
    language = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_language), tmp_path / "model" / "language_adapter"
    )
    assert torch.equal(language(ids).logits, loaded.model.language.eval()(ids).logits)
    vision = PeftModel.from_pretrained(
        CLIPVisionModel.from_pretrained(tiny_vision), tmp_path / "model" / "vision_adapter"
    )
    pixels = batch().pixels
    values = loaded.model.vision.normalise(pixels)
    hidden = vision(pixel_values=values, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.equal(hidden, loaded.model.vision.eval()(pixels))


def test_fully_tuned_folders_are_whole_hugging_face_folders(
    tiny_language: Path, tiny_vision: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

    loaded = build(config(tiny_language, tiny_vision, "full", "full"), torch.float32)
    state = trained(loaded)
    save_trained(loaded, state, tmp_path / "model")
    vision, info = CLIPVisionModel.from_pretrained(tmp_path / "model" / "vision", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert len(vision.encoder.layers) == 3
    language = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "language")
    assert torch.equal(language.lm_head.weight, state["language.lm_head.weight"])
    assert AutoTokenizer.from_pretrained(tmp_path / "model" / "language").bos_token == "<s>"


def test_projector_starts_from_a_trained_run(tiny_language: Path, tiny_vision: Path, tmp_path: Path) -> None:
    loaded = build(config(tiny_language, tiny_vision), torch.float32)
    state = trained(loaded)
    save_trained(loaded, state, tmp_path / "model")
    for path in (tmp_path / "model", tmp_path / "model" / "projector"):
        start = config(tiny_language, tiny_vision)
        start = start.model_copy(update={"projector": start.projector.model_copy(update={"path": str(path)})})
        again = build(start, torch.float32, seed=99)
        assert torch.equal(again.model.projector.linear_1.weight, state["projector.linear_1.weight"])


def test_wrong_projector_weights_are_errors(tiny_language: Path, tiny_vision: Path, tmp_path: Path) -> None:
    start = config(tiny_language, tiny_vision)
    start = start.model_copy(update={"projector": start.projector.model_copy(update={"path": str(tmp_path)})})
    with pytest.raises(ConfigError, match="no projector in"):
        build(start, torch.float32)
    right = {"linear_1.weight": (64, 64), "linear_1.bias": (64,), "linear_2.weight": (64, 64), "linear_2.bias": (64,)}
    file = tmp_path / "model.safetensors"
    cases = {
        "missing: linear_2.bias": {k: v for k, v in right.items() if k != "linear_2.bias"},
        "left over: model.0.weight": {**right, "model.0.weight": (1,)},
        r"other shapes: linear_1.weight is \(64, 32\)": {**right, "linear_1.weight": (64, 32)},
    }
    for message, shapes in cases.items():
        save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, file)
        with pytest.raises(WeightsError, match=message):
            build(start, torch.float32)
    file.write_bytes(b"torn")
    with pytest.raises(WeightsError, match="cannot read"):
        build(start, torch.float32)


def test_missing_base_weights_are_errors(tiny_language: Path, tiny_vision: Path, tmp_path: Path) -> None:
    import shutil

    broken = shutil.copytree(tiny_language, tmp_path / "language")
    state = load_file(broken / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file({**state, "extra.weight": torch.zeros(1)}, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing: model.layers.1.mlp.up_proj.weight; left over: extra.weight"):
        build(config(broken, tiny_vision), torch.float32)
    with pytest.raises(ConfigError, match=r"model.language.path: folder not found: .*nowhere"):
        build(config(tmp_path / "nowhere", tiny_vision), torch.float32)


def test_wrong_adapter_keys_and_manifests_are_errors(tiny_language: Path, tiny_vision: Path, tmp_path: Path) -> None:
    loaded = build(config(tiny_language, tiny_vision, "lora"), torch.float32)
    folder = tmp_path / "model"
    save_trained(loaded, trained(loaded), folder)
    file = folder / "language_adapter" / "adapter_model.safetensors"
    state = load_file(file)
    name = next(iter(state))
    save_file({(k + "_old" if k == name else k): v for k, v in state.items()}, file)
    with pytest.raises(WeightsError, match=f"missing: {name}; left over: {name}_old"):
        load_trained(folder)
    manifest = json.loads((folder / "llava.json").read_text())
    (folder / "llava.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(ConfigError, match="has format 2; this version reads format 1"):
        load_trained(folder)
    (folder / "llava.json").unlink()
    with pytest.raises(ConfigError, match="no trained model"):
        load_trained(folder)


def test_layer_out_of_range_is_refused(tiny_language: Path, tiny_vision: Path) -> None:
    wrong = config(tiny_language, tiny_vision)
    wrong = wrong.model_copy(update={"vision": wrong.vision.model_copy(update={"layer": -4})})
    with pytest.raises(ConfigError, match=r"model.vision.layer is -4, but the tower has 3 layers"):
        build(wrong, torch.float32)
