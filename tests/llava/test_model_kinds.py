"""Every kind of language model in the zoo: loads, joins, trains a step in every way, and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.config import ModelConfig, TrainingConfig
from llava.errors import ConfigError, WeightsError
from llava.model.load import Loaded, build, load_trained, save_trained, trainable
from llava.optim import groups
from tests.llava.test_model_join import PROJECTOR, adapters, batch, naive_loss, samples, trained
from tests.llava.tiny_zoo import KINDS, build_kind

ALL = ["internlm", "internlm2", *KINDS]
LLAMA = [*(f"self_attn.{p}_proj" for p in "qkvo"), *(f"mlp.{p}_proj" for p in ("gate", "up", "down"))]
LINEARS = {
    **dict.fromkeys(ALL, LLAMA),
    "phi3": ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"],
}
WAYS = [("frozen", "none"), ("full", "none"), ("lora", "none"), ("lora", "nf4")]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("zoo")
    return {kind: build_kind(root / kind, kind) for kind in ALL}


def config(language: Path, vision: Path, tuning: str, quantize: str = "none", **lora: Any) -> ModelConfig:
    part = {"path": str(language), "tuning": tuning, "quantize": quantize}
    part["lora"] = {"rank": 4, "alpha": 8, "dropout": 0.0, **lora}  # type: ignore[assignment]
    return ModelConfig.model_validate({"language": part, "vision": {"path": str(vision)}})


def step(loaded: Loaded, parts: ModelConfig) -> tuple[float, float]:
    """The loss before and after one update of AdamW."""
    found = groups(loaded.model, parts, TrainingConfig(learning_rate=1e-3))
    optimizer = torch.optim.AdamW(
        [{"params": list(group.parameters.values()), "lr": group.learning_rate} for group in found]
    )
    first, count = loaded.model(batch())
    (first / count).backward()
    assert all(p.grad is not None for p in trainable(loaded.model).values()), "a weight that trains got no gradient"
    optimizer.step()
    return first.item(), loaded.model(batch())[0].item()


@pytest.mark.parametrize(("tuning", "quantize"), WAYS, ids=[f"{tuning}-{bits}" for tuning, bits in WAYS])
@pytest.mark.parametrize("kind", ALL)
def test_a_step_of_training_and_back(
    zoo: dict[str, Path], tiny_vision: Path, tmp_path: Path, kind: str, tuning: str, quantize: str
) -> None:
    parts = config(zoo[kind], tiny_vision, tuning, quantize)
    loaded = build(parts, torch.float32)
    names, linears = trainable(loaded.model).keys(), LINEARS[kind]
    modules = {f"language.model.layers.{n}.{name}" for n in range(2) for name in linears}
    if tuning == "frozen":
        assert names == PROJECTOR
    if tuning == "lora":
        shared = {
            name for name in adapters(modules) if kind == "internlm2" and ".lora_A." in name and ".q_" not in name
        }
        shared = {name for name in shared if ".k_proj" in name or ".v_proj" in name}
        assert names == PROJECTOR | adapters(modules) - shared
    if tuning == "full":
        assert names == PROJECTOR | {f"language.{name}" for name, _ in loaded.model.language.named_parameters()}
    before, after = step(loaded, parts)
    assert after < before
    state = {name: parameter.detach().clone() for name, parameter in trainable(loaded.model).items()}
    save_trained(loaded, state, tmp_path / "model")
    again = load_trained(tmp_path / "model")
    with torch.no_grad():
        assert again.model(batch())[0].item() == loaded.model.eval()(batch())[0].item()
    assert again.tokenizer.encode("What colour is it?") == loaded.tokenizer.encode("What colour is it?")


@pytest.mark.parametrize("kind", ALL)
def test_the_loss_is_that_of_the_full_logits(zoo: dict[str, Path], tiny_vision: Path, kind: str) -> None:
    loaded = build(config(zoo[kind], tiny_vision, "frozen"), torch.float32)
    with torch.no_grad():
        loss, expected = loaded.model(batch())[0], naive_loss(loaded, samples())[0]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["internlm2", "phi3"])
def test_adapters_on_the_head_where_asked_for(
    zoo: dict[str, Path], tiny_vision: Path, tmp_path: Path, kind: str
) -> None:
    parts = config(zoo[kind], tiny_vision, "lora", "nf4", head=True)
    loaded = build(parts, torch.float32)
    head = {name for name in trainable(loaded.model) if "lm_head" in name}
    assert head == adapters({"language.lm_head"})
    before, after = step(loaded, parts)
    assert after < before
    save_trained(loaded, trained(loaded), tmp_path / "model")
    with torch.no_grad():
        assert load_trained(tmp_path / "model").model(batch())[0].item() == loaded.model.eval()(batch())[0].item()


def test_a_tied_head_takes_no_adapters(zoo: dict[str, Path], tiny_vision: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora\.head: this model's head is its embeddings"):
        build(config(zoo["qwen3"], tiny_vision, "lora", head=True), torch.float32)


def test_adapters_of_one_fused_layer_share_a_factor(zoo: dict[str, Path], tiny_vision: Path, tmp_path: Path) -> None:
    """The update of q, k and v together is that of one adapter on wqkv: rank 4 in all, not in each."""
    loaded = build(config(zoo["internlm2"], tiny_vision, "lora"), torch.float32)
    state = trained(loaded)
    attention = loaded.model.language.model.layers[0].self_attn
    update = torch.cat([getattr(attention, f"{p}_proj").get_delta_weight("default") for p in "qkv"])
    assert torch.linalg.matrix_rank(update) == 4
    save_trained(loaded, state, tmp_path / "model")
    file = tmp_path / "model" / "language_adapter" / "adapter_model.safetensors"
    written = load_file(file)
    name = "base_model.model.model.layers.0.self_attn.{}_proj.lora_A.weight"
    assert torch.equal(written[name.format("q")], written[name.format("k")])
    written[name.format("v")] += 1
    save_file(written, file)
    with pytest.raises(WeightsError, match="differs from its twin for the same layer"):
        load_trained(tmp_path / "model")


def test_peft_reads_adapters_of_internlm2_on_the_llama_layout(
    zoo: dict[str, Path], tiny_vision: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    from llava.model.language import load_language

    loaded = build(config(zoo["internlm2"], tiny_vision, "lora", head=True), torch.float32)
    save_trained(loaded, trained(loaded), tmp_path / "model")
    base = load_language(str(zoo["internlm2"]), torch.float32, None, "cpu")
    theirs = PeftModel.from_pretrained(base, tmp_path / "model" / "language_adapter")
    ids = torch.arange(10, 20)[None]
    assert torch.equal(theirs(ids).logits, loaded.model.language.eval()(ids).logits)
