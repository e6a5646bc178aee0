"""InternLM and InternLM2 folders against a forward pass written from their definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import save_file

from llava.errors import ConfigError, WeightsError
from llava.model.internlm import fuse, llama_config, rows
from llava.model.language import check_nf4, language_config, llama_tensors, load_language, nf4
from tests.llava import tiny_zoo as zoo

CLOSE = 1e-5


def logits(folder: Path, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    model = load_language(str(folder), torch.float32, None, "cpu", **options)
    with torch.no_grad():
        return model(ids[None]).logits[0]  # type: ignore[no-any-return]


def some_ids(length: int) -> torch.Tensor:
    return torch.randint(0, 400, (length,), generator=torch.Generator().manual_seed(length))


SCALINGS: list[dict[str, Any] | None] = [
    {"type": "dynamic", "factor": 2.0},
    {"type": "linear", "factor": 4.0},
    None,
]


@pytest.mark.parametrize("length", [5, 64, 90])
@pytest.mark.parametrize("scaling", SCALINGS, ids=["dynamic", "linear", "unscaled"])
def test_internlm2_gives_the_logits_of_its_definition(
    tmp_path: Path, scaling: dict[str, Any] | None, length: int
) -> None:
    config = zoo.INTERNLM2 | {"rope_scaling": scaling}
    state = zoo.internlm2_state(config)
    seen = logits(zoo.write_folder(tmp_path, config, state), some_ids(length))
    expected = zoo.internlm2_logits(config, state, some_ids(length))
    assert expected.std() > 0.5
    assert (seen - expected).abs().max().item() <= CLOSE


@pytest.mark.parametrize("changes", [{"bias": True}, *({"num_key_value_heads": heads} for heads in (8, 2, 1))])
def test_internlm2_with_biases_or_other_groups(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = zoo.INTERNLM2 | changes
    state = zoo.internlm2_state(config)
    seen = logits(zoo.write_folder(tmp_path, config, state), some_ids(20))
    assert (seen - zoo.internlm2_logits(config, state, some_ids(20))).abs().max().item() <= CLOSE


@pytest.mark.parametrize("length", [5, 64, 90])
def test_internlm_gives_the_logits_of_its_definition(tmp_path: Path, length: int) -> None:
    state = zoo.internlm_state(zoo.INTERNLM)
    seen = logits(zoo.write_folder(tmp_path, zoo.INTERNLM, state), some_ids(length))
    expected = zoo.internlm_logits(zoo.INTERNLM, state, some_ids(length))
    assert expected.std() > 0.5
    assert (seen - expected).abs().max().item() <= CLOSE


def test_no_code_of_the_folder_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = zoo.write_folder(tmp_path, zoo.INTERNLM2, zoo.internlm2_state(zoo.INTERNLM2))
    for name in ("configuration_internlm2", "modeling_internlm2"):
        (folder / f"{name}.py").write_text("raise SystemExit('ran')")
    assert type(load_language(str(folder), torch.float32, None, "cpu")).__name__ == "LlamaForCausalLM"


def test_sharded_folders_give_the_same_weights(tmp_path: Path) -> None:
    state = zoo.internlm2_state(zoo.INTERNLM2)
    whole = zoo.write_folder(tmp_path / "whole", zoo.INTERNLM2, state)
    parts = zoo.write_folder(tmp_path / "parts", zoo.INTERNLM2, state, files=3)
    one, many = (load_language(str(folder), torch.float32, None, "cpu").state_dict() for folder in (whole, parts))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert load_language(str(parts), torch.bfloat16, None, "cpu").dtype == torch.bfloat16


def test_pickles_are_read_only_where_the_user_says_so(tmp_path: Path) -> None:
    state = zoo.internlm2_state(zoo.INTERNLM2)
    folder = zoo.write_folder(tmp_path, zoo.INTERNLM2, state)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="are pickles") as caught:
        load_language(str(folder), torch.float32, None, "cpu")
    assert "allow_pickle: true" in caught.value.hint
    expected = zoo.internlm2_logits(zoo.INTERNLM2, state, some_ids(9))
    assert (logits(folder, some_ids(9), allow_pickle=True) - expected).abs().max().item() <= CLOSE


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('ran')",)


def test_code_in_pickles_never_runs(tmp_path: Path) -> None:
    folder = zoo.write_folder(tmp_path, zoo.INTERNLM2, zoo.internlm2_state(zoo.INTERNLM2))
    (folder / "model.safetensors").unlink()
    torch.save({"output.weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="cannot read"):
        load_language(str(folder), torch.float32, None, "cpu", allow_pickle=True)


def test_weights_that_do_not_fit_are_errors(tmp_path: Path) -> None:
    state, file = zoo.internlm2_state(zoo.INTERNLM2), tmp_path / "model.safetensors"
    zoo.write_folder(tmp_path, zoo.INTERNLM2, state)
    wo, w2 = "model.layers.1.attention.wo.weight", "model.layers.0.feed_forward.w2.weight"
    wqkv = "model.layers.0.attention.wqkv.weight"
    cases: dict[str, dict[str, torch.Tensor]] = {
        r"missing: model.layers.1.self_attn.o_proj.weight": {k: v for k, v in state.items() if k != wo},
        r"missing: model.layers.0.self_attn.k_proj.weight, ": {k: v for k, v in state.items() if k != wqkv},
        r"left over: model.layers.0.attention.wx.weight": {**state, "model.layers.0.attention.wx.weight": state[wo]},
        r"left over: model.layers.0.attention.wqkv_old.weight": {
            **state,
            "model.layers.0.attention.wqkv_old.weight": state[wqkv],
        },
        r"do not fit its config.json": {**state, w2: torch.zeros(64, 95)},
        r"wqkv.weight has 129 rows, but the config's heads make 128": {**state, wqkv: torch.zeros(129, 64)},
        r"and another tensor both are lm_head.weight": {**state, "lm_head.weight": state["output.weight"]},
    }
    for message, wrong in cases.items():
        save_file({name: tensor.clone() for name, tensor in wrong.items()}, file, metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=message):
            load_language(str(tmp_path), torch.float32, None, "cpu")
    file.write_bytes(b"torn")
    with pytest.raises(WeightsError, match="cannot read"):
        load_language(str(tmp_path), torch.float32, None, "cpu")
    file.unlink()
    with pytest.raises(ConfigError, match="no weights in"):
        load_language(str(tmp_path), torch.float32, None, "cpu")


def test_a_broken_set_of_shards_is_an_error(tmp_path: Path) -> None:
    zoo.write_folder(tmp_path, zoo.INTERNLM2, zoo.internlm2_state(zoo.INTERNLM2), files=2)
    second = tmp_path / "model-00002-of-00002.safetensors"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(WeightsError, match=r"cannot read .*00002-of-00002"):
        load_language(str(tmp_path), torch.float32, None, "cpu")
    second.write_bytes((tmp_path / "model-00001-of-00002.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"lacks .* which the index promises"):
        load_language(str(tmp_path), torch.float32, None, "cpu")
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="cannot read"):
        load_language(str(tmp_path), torch.float32, None, "cpu")


def test_in_4_bits_the_llama_layout_is_quantised(tmp_path: Path) -> None:
    folder = zoo.write_folder(tmp_path, zoo.INTERNLM2, zoo.internlm2_state(zoo.INTERNLM2))
    model = load_language(str(folder), torch.float32, nf4(torch.float32), "cpu")
    check_nf4(model, model.get_output_embeddings(), str(folder))
    weight = model.model.layers[1].self_attn.v_proj.weight
    whole = load_language(str(folder), torch.float32, None, "cpu").model.layers[1].self_attn.v_proj.weight
    packed, packing = quantize_4bit(whole.detach(), compress_statistics=True, quant_type="nf4")
    assert torch.equal(dequantize_4bit(weight.data, weight.quant_state), dequantize_4bit(packed, packing))


def test_tensors_are_read_one_by_one_under_llamas_names(tmp_path: Path) -> None:
    state = zoo.internlm2_state(zoo.INTERNLM2)
    folder = zoo.write_folder(tmp_path, zoo.INTERNLM2, state, files=2)
    tensors = llama_tensors(str(folder))
    model = load_language(str(folder), torch.float32, None, "cpu")
    assert tensors.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert tensors[name].shape == tuple(weight.shape)
        assert torch.equal(tensors[name].read(), weight)
    at = "model.layers.1.self_attn.{}_proj.weight"
    q, k, v = (model.state_dict()[at.format(part)] for part in "qkv")
    assert torch.equal(fuse(zoo.INTERNLM2, q, k, v), state["model.layers.1.attention.wqkv.weight"])


def test_its_config_is_llamas_and_says_that_there_was_one_layer(tmp_path: Path) -> None:
    folder = zoo.write_folder(tmp_path / "own", zoo.INTERNLM2, zoo.internlm2_state(zoo.INTERNLM2))
    config = language_config(str(folder))
    rope = {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}
    assert {key: config.rope_parameters[key] for key in rope} == rope
    assert (config.attention_bias, config.rms_norm_eps, config.fused_qkv) == (False, 1e-5, True)
    load_language(str(folder), torch.float32, None, "cpu").save_pretrained(tmp_path / "llama")
    again = language_config(str(tmp_path / "llama"))
    assert (again.model_type, again.fused_qkv, again.rope_parameters) == ("llama", True, config.rope_parameters)
    assert torch.equal(logits(tmp_path / "llama", some_ids(90)), logits(folder, some_ids(90)))


def test_rows_of_the_fused_layer() -> None:
    # Two groups of two query heads, one key head and one value head, each two wide.
    config = {"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
    assert rows(config, "q").tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert rows(config, "k").tolist() == [4, 5, 12, 13]
    assert rows(config, "v").tolist() == [6, 7, 14, 15]


def test_unknown_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="positions of type 'yarn' are unknown"):
        llama_config(zoo.INTERNLM2 | {"rope_scaling": {"type": "yarn", "factor": 2.0}})
