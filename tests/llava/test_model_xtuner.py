"""Folders as XTuner publishes them: what their adapters add to the original layout, they add to ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionModel

from llava.errors import ConfigError, WeightsError
from llava.model.load import Loaded, load_trained, save_trained, tuned
from llava.model.projector import Projector, load_projector
from llava.model.xtuner import is_xtuner, load_xtuner, map_language, map_vision
from tests.llava import tiny_zoo as zoo
from tests.llava.test_model_join import batch

RANK, ALPHA = 4, 6
CLOSE = 1e-5
BASE = "base_model.model."
VISION_LINEARS = [*(f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2"]


def factors(weights: dict[str, Tensor], modules: list[str], prefix: str = "", seed: int = 0) -> dict[str, Tensor]:
    """Random A and B for each module, under PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for module in modules:
        rows, columns = weights[f"{module}.weight"].shape
        state[f"{BASE}{prefix}{module}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) * 0.1
        state[f"{BASE}{prefix}{module}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) * 0.1
    return state


def merged(weights: dict[str, Tensor], state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """W + alpha / r x B A on the layout that the adapter was trained on."""
    changed = dict(weights)
    for name, second in state.items():
        if name.endswith(".lora_B.weight"):
            module = name.removeprefix(BASE + prefix).removesuffix(".lora_B.weight")
            first = state[name.replace("lora_B", "lora_A")]
            changed[f"{module}.weight"] = weights[f"{module}.weight"] + ALPHA / RANK * second @ first
    return changed


def write_adapter(folder: Path, state: dict[str, Tensor], base: str, pickled: bool = False, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.05, "bias": "none"}
    values |= {"base_model_name_or_path": base, "target_modules": ["whatever"], "modules_to_save": None, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    if pickled:
        torch.save(state, folder / "adapter_model.bin")
    else:
        save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "adapter_model.safetensors")
    return folder


def write_projector(folder: Path, **changes: Any) -> dict[str, Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"visual_hidden_size": 64, "llm_hidden_size": 64, "depth": 2, "hidden_act": "gelu", "bias": True}
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in (0, 2):
        shapes |= {f"model.{layer}.weight": (64, 64), f"model.{layer}.bias": (64,)}
    state = zoo.random_state(shapes, 9)
    save_file(state, folder / "model.safetensors")
    return state


def internlm2_modules(head: bool = True) -> list[str]:
    inside = ["attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
    return [f"model.layers.{n}.{name}" for n in range(2) for name in inside] + (["output"] if head else [])


def clip_modules(layers: int) -> list[str]:
    return [f"encoder.layers.{n}.{name}" for n in range(layers) for name in VISION_LINEARS]


def clip_adapter(tower: Path) -> dict[str, Tensor]:
    """With transformers 4's names, on all three layers, the last of them untrained."""
    state = factors(CLIPVisionModel.from_pretrained(tower).state_dict(), clip_modules(3), "vision_model.", seed=1)
    return {name: t * 0 if "layers.2." in name and "lora_B" in name else t for name, t in state.items()}


@pytest.fixture(scope="module")
def internlm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.build_kind(tmp_path_factory.mktemp("internlm2"), "internlm2")


@pytest.fixture
def published(tmp_path: Path, internlm2: Path, tiny_vision: Path) -> Path:
    """llm_adapter, visual_encoder_adapter and projector, as of LLaVA-InternLM2-7B."""
    folder = tmp_path / "llava-internlm2"
    write_adapter(
        folder / "llm_adapter", factors(zoo.internlm2_state(zoo.INTERNLM2), internlm2_modules()), str(internlm2)
    )
    write_adapter(folder / "visual_encoder_adapter", clip_adapter(tiny_vision), "openai/clip")
    write_projector(folder / "projector")
    (folder / "xtuner_config.py").write_text("raise SystemExit('ran')")
    return folder


def ids() -> Tensor:
    return torch.randint(0, 400, (20,), generator=torch.Generator().manual_seed(0))


def logits(loaded: Loaded) -> Tensor:
    with torch.no_grad():
        return loaded.model.language(ids()[None]).logits[0]  # type: ignore[no-any-return]


def test_adapters_add_the_same_as_on_internlm2s_own_layers(published: Path, tiny_vision: Path) -> None:
    assert is_xtuner(published)
    loaded = load_xtuner(published, str(tiny_vision), "internlm2_chat")
    base = zoo.internlm2_state(zoo.INTERNLM2)
    expected = zoo.internlm2_logits(zoo.INTERNLM2, merged(base, factors(base, internlm2_modules())), ids())
    unchanged = zoo.internlm2_logits(zoo.INTERNLM2, base, ids())
    assert (expected - unchanged).abs().max().item() > 0.5, "the adapter is too small to show"
    assert (logits(loaded) - expected).abs().max().item() <= CLOSE
    assert (loaded.config.language.lora.rank, loaded.config.language.lora.head) == (RANK, True)
    assert not loaded.model.training


def test_every_row_of_the_update_stays_what_it_was(internlm2: Path) -> None:
    state = factors(zoo.internlm2_state(zoo.INTERNLM2), internlm2_modules())
    mapped = map_language(state, zoo.INTERNLM2)
    at = f"{BASE}model.layers.1."
    whole = state[f"{at}attention.wqkv.lora_B.weight"] @ state[f"{at}attention.wqkv.lora_A.weight"]
    q, k, v = (
        mapped[f"{at}self_attn.{p}_proj.lora_B.weight"] @ mapped[f"{at}self_attn.{p}_proj.lora_A.weight"] for p in "qkv"
    )
    from llava.model.internlm import fuse

    torch.testing.assert_close(fuse(zoo.INTERNLM2, q, k, v), whole, rtol=0, atol=1e-7)
    assert len(mapped) == len(state) + 2 * 2 * 2  # q, k and v for each wqkv of two layers


def test_old_clip_adapters_are_really_applied(published: Path, tiny_vision: Path) -> None:
    loaded = load_xtuner(published, str(tiny_vision), "internlm2_chat")
    clip, pixels = CLIPVisionModel.from_pretrained(tiny_vision), batch().pixels
    values = loaded.model.vision.normalise(pixels)
    with torch.no_grad():
        unchanged = clip(values, output_hidden_states=True).hidden_states[-2][:, 1:]
        clip.load_state_dict(merged(clip.state_dict(), clip_adapter(tiny_vision), "vision_model."))
        expected = clip(values, output_hidden_states=True).hidden_states[-2][:, 1:]
        seen = loaded.model.vision(pixels)
    assert (expected - unchanged).abs().max().item() > 0.1
    assert (seen - expected).abs().max().item() <= CLOSE


def test_the_projector_has_xtuners_names(published: Path, tiny_vision: Path, tmp_path: Path) -> None:
    loaded = load_xtuner(published, str(tiny_vision), "internlm2_chat")
    state = write_projector(tmp_path / "again")
    assert torch.equal(loaded.model.projector.linear_1.weight, state["model.0.weight"])
    assert torch.equal(loaded.model.projector.linear_2.bias, state["model.2.bias"])
    ours = Projector(64, 64)  # and model.projector.path takes such a folder too
    load_projector(ours, published)
    assert torch.equal(ours.linear_2.weight, state["model.2.weight"])


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_it_becomes_a_model_folder_of_ours(published: Path, tiny_vision: Path, tmp_path: Path, quantize: Any) -> None:
    loaded = load_xtuner(published, str(tiny_vision), "internlm2_chat", quantize=quantize)
    save_trained(loaded, tuned(loaded), tmp_path / "model")
    again = load_trained(tmp_path / "model")
    with torch.no_grad():
        assert again.model(batch())[0].item() == loaded.model(batch())[0].item()
    assert (again.config.template, again.config.language.quantize) == ("internlm2_chat", quantize)


def test_llama_adapters_and_a_frozen_tower(tmp_path: Path, tiny_language: Path, tiny_vision: Path) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_language)
    modules = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    state = factors(model.state_dict(), modules)
    write_adapter(tmp_path / "llm_adapter", state, "lmsys/vicuna-7b-v1.5")
    write_projector(tmp_path / "projector")
    loaded = load_xtuner(tmp_path, str(tiny_vision), "vicuna", str(tiny_language))
    model.load_state_dict(merged(model.state_dict(), state))
    with torch.no_grad():
        assert (logits(loaded) - model(ids()[None]).logits[0]).abs().max().item() <= CLOSE
    assert (loaded.config.vision.tuning, loaded.config.language.lora.head) == ("frozen", False)


def test_whole_models_in_the_root_and_beside_it(tmp_path: Path, tiny_vision: Path) -> None:
    """As of full tuning: the language model in the root, InternLM2 in its own layout; the tower in visual_encoder/."""
    folder = zoo.build_kind(tmp_path, "internlm2")
    write_projector(folder / "projector")
    CLIPVisionModel.from_pretrained(tiny_vision).save_pretrained(folder / "visual_encoder")
    (folder / "visual_encoder" / "preprocessor_config.json").write_text(
        (tiny_vision / "preprocessor_config.json").read_text()
    )
    loaded = load_xtuner(folder, "not read", "internlm2_chat")
    expected = zoo.internlm2_logits(zoo.INTERNLM2, zoo.internlm2_state(zoo.INTERNLM2), ids())
    assert (logits(loaded) - expected).abs().max().item() <= CLOSE
    assert (loaded.config.language.tuning, loaded.config.vision.tuning) == ("full", "full")
    save_trained(loaded, tuned(loaded), tmp_path / "ours")
    assert torch.equal(logits(load_trained(tmp_path / "ours")), logits(loaded))


def test_a_pretrained_projector_alone(tmp_path: Path, internlm2: Path, tiny_vision: Path) -> None:
    state = write_projector(tmp_path / "projector")
    with pytest.raises(ConfigError, match="has no language model and names none"):
        load_xtuner(tmp_path, str(tiny_vision), "internlm2_chat")
    loaded = load_xtuner(tmp_path, str(tiny_vision), "internlm2_chat", str(internlm2))
    assert (loaded.config.language.tuning, loaded.config.vision.tuning) == ("frozen", "frozen")
    assert tuned(loaded).keys() == {f"projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    assert torch.equal(tuned(loaded)["projector.linear_1.bias"], state["model.0.bias"])


def test_pickled_adapters_need_a_word(published: Path, internlm2: Path, tiny_vision: Path) -> None:
    state = factors(zoo.internlm2_state(zoo.INTERNLM2), internlm2_modules())
    whole = logits(load_xtuner(published, str(tiny_vision), "internlm2_chat"))
    (published / "llm_adapter" / "adapter_model.safetensors").unlink()
    write_adapter(published / "llm_adapter", state, str(internlm2), pickled=True)
    with pytest.raises(ConfigError, match=r"the weights in .*llm_adapter are pickles"):
        load_xtuner(published, str(tiny_vision), "internlm2_chat")
    assert torch.equal(logits(load_xtuner(published, str(tiny_vision), "internlm2_chat", allow_pickle=True)), whole)


def test_keys_without_a_home_are_errors(published: Path, internlm2: Path, tiny_vision: Path) -> None:
    state = factors(zoo.internlm2_state(zoo.INTERNLM2), internlm2_modules())
    wqkv, some = f"{BASE}model.layers.0.attention.wqkv.lora_B.weight", next(iter(state.values()))
    gone = f"{BASE}model.layers.1.feed_forward.w3.lora_A.weight"
    cases: dict[str, dict[str, Tensor]] = {
        r"left over: .*layers\.7": {**state, f"{BASE}model.layers.7.feed_forward.w1.lora_A.weight": some},
        r"left over: .*attention\.wz": {**state, f"{BASE}model.layers.0.attention.wz.lora_A.weight": some},
        r"missing: .*layers\.1\.mlp\.up_proj\.lora_A": {k: v for k, v in state.items() if k != gone},
        r"is no LoRA factor's name": {**state, f"{BASE}model.norm.weight": some},
        r"has 64 rows, but the base's heads make 128": {**state, wqkv: state[wqkv][:64]},
        r"two adapters go to .*q_proj\.lora_A": {
            **state,
            f"{BASE}model.layers.0.self_attn.q_proj.lora_A.weight": some.clone(),
        },
    }
    for message, wrong in cases.items():
        write_adapter(published / "llm_adapter", wrong, str(internlm2))
        with pytest.raises(WeightsError, match=message):
            load_xtuner(published, str(tiny_vision), "internlm2_chat")


def test_adapters_of_the_tower_find_their_place_or_none(tiny_vision: Path) -> None:
    state = clip_adapter(tiny_vision)
    assert map_vision(state, 2).keys() == {
        f"{BASE}{name}.lora_{factor}.weight" for name in clip_modules(2) for factor in "AB"
    }
    new = {name.replace("vision_model.", ""): tensor for name, tensor in state.items()}
    assert map_vision(new, 2).keys() == map_vision(state, 2).keys()
    last = f"{BASE}vision_model.encoder.layers.2.mlp.fc1.lora_B.weight"
    with pytest.raises(WeightsError, match=r"trained on encoder\.layers\.2\.mlp\.fc1, which the tower does not use"):
        map_vision({**state, last: state[last] + 1}, 2)
    assert len(map_vision({**state, last: state[last] + 1}, 3)) == len(state)


def test_adapters_of_other_kinds_are_refused(published: Path, internlm2: Path, tiny_vision: Path) -> None:
    state = factors(zoo.internlm2_state(zoo.INTERNLM2), internlm2_modules())
    for changes in ({"use_rslora": True}, {"bias": "all"}, {"rank_pattern": {"wqkv": 8}}, {"peft_type": "LOHA"}):
        write_adapter(published / "llm_adapter", state, str(internlm2), **changes)
        with pytest.raises(ConfigError, match=f"cannot be mapped \\({next(iter(changes))}: "):
            load_xtuner(published, str(tiny_vision), "internlm2_chat")
    write_adapter(published / "llm_adapter", state, "")
    with pytest.raises(ConfigError, match="does not name its base"):
        load_xtuner(published, str(tiny_vision), "internlm2_chat")
    write_adapter(published / "llm_adapter", state, str(internlm2))
    write_projector(published / "projector", depth=3)
    with pytest.raises(ConfigError, match=r"\(depth: 3\)"):
        load_xtuner(published, str(tiny_vision), "internlm2_chat")
    with pytest.raises(ConfigError, match="no model of XTuner's"):
        load_xtuner(internlm2, str(tiny_vision), "internlm2_chat")
