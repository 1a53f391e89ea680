"""Reading config.json: everything it asks for is honoured, refused or warned about, by name."""

import json
from pathlib import Path
from typing import Any

import pytest

import jmi_models
from jmi.errors import ConfigError
from jmi_models.families import FAMILIES, family_of, llama
from tests.oracles import llama_grid

CONFIG = llama_grid.GRID["grouped"]


def refused(**changes: Any) -> str:
    """Message of the ConfigError that ``CONFIG`` with ``changes`` raises."""
    with pytest.raises(ConfigError) as caught:
        llama.from_config({**CONFIG, **changes})
    return str(caught.value)


REQUIRED = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
]


@pytest.mark.parametrize("field", REQUIRED)
def test_missing_field_is_named(field: str) -> None:
    config = {key: value for key, value in CONFIG.items() if key != field}
    with pytest.raises(ConfigError, match=f"'{field}' is missing"):
        llama.from_config(config)
    assert f"'{field}' is missing" in refused(**{field: None})


@pytest.mark.parametrize("value", ["24", 24.0, 0, -1, True, [24]])
@pytest.mark.parametrize("field", [*REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings"])
def test_size_that_is_no_positive_integer_is_refused(field: str, value: Any) -> None:
    assert f"'{field}' must be a positive integer, got {value!r}" in refused(**{field: value})


@pytest.mark.parametrize("field", ["attention_bias", "mlp_bias", "tie_word_embeddings"])
@pytest.mark.parametrize("value", [0, 1, "false"])
def test_flag_that_is_no_boolean_is_refused(field: str, value: Any) -> None:
    assert f"'{field}' must be true or false, got {value!r}" in refused(**{field: value})


@pytest.mark.parametrize("value", ["1e-5", True, [1e-5]])
def test_number_of_a_wrong_type_is_refused(value: Any) -> None:
    assert f"'rms_norm_eps' must be a positive number, got {value!r}" in refused(rms_norm_eps=value)


@pytest.mark.parametrize("value", ["ten", [10000.0], True])
def test_rope_theta_of_a_wrong_type_is_refused(value: Any) -> None:
    assert "rope_theta" in refused(rope_theta=value)


@pytest.mark.parametrize("value", ["silly", "SiLU", 3, ["silu"]])
def test_unknown_activation_is_refused_and_the_known_are_named(value: Any) -> None:
    message = refused(hidden_act=value)
    assert f"hidden_act {value!r} is unknown" in message
    assert "silu" in message
    assert "gelu_pytorch_tanh" in message


def test_heads_that_do_not_divide_are_refused() -> None:
    assert "num_key_value_heads=3 does not divide num_attention_heads=4" in refused(num_key_value_heads=3)


@pytest.mark.parametrize("changes", [{"head_dim": 7}, {"hidden_size": 20}])
def test_odd_head_width_cannot_be_rotated(changes: dict[str, int]) -> None:
    assert "must be even" in refused(**changes)


def test_width_that_heads_do_not_divide_needs_a_head_dim() -> None:
    assert "hidden_size" in refused(hidden_size=26)
    assert llama.from_config({**CONFIG, "hidden_size": 26, "head_dim": 6}).d_head == 6


def test_tensor_parallel_pretraining_is_refused() -> None:
    assert "pretraining_tp=2 is not supported" in refused(pretraining_tp=2)
    assert llama.from_config({**CONFIG, "pretraining_tp": 1}) == llama.from_config(CONFIG)


def test_how_weights_are_stored_is_no_part_of_an_architecture() -> None:
    for given in ({"quant_method": "gptq", "bits": 4}, None):
        assert llama.from_config({**CONFIG, "quantization_config": given}) == llama.from_config(CONFIG)


def test_unread_fields_warn_by_name() -> None:
    with pytest.warns(
        UserWarning, match=r"without effect here: residual_multiplier, sliding_window"
    ) as caught:
        llama.from_config({**CONFIG, "sliding_window": 8, "residual_multiplier": 2.0})
    assert len(caught) == 1


def test_bookkeeping_fields_do_not_warn() -> None:
    extra = {
        "torch_dtype": "bfloat16",
        "transformers_version": "5.23.0",
        "bos_token_id": 1,
        "use_cache": True,
    }
    assert llama.from_config({**CONFIG, **extra}) == llama.from_config(CONFIG)


def test_defaults_are_those_of_hugging_face() -> None:
    arch = llama.from_config({key: CONFIG[key] for key in (*REQUIRED, "model_type")})
    assert (arch.n_kv_heads, arch.d_head, arch.n_ctx, arch.norms.norm.eps) == (4, 6, 2048, 1e-6)
    assert (arch.mlp.act_fn, arch.positions.ropes[0].theta, arch.tied) == ("silu", 10000.0, False)
    assert [arch.attn.qkv_bias, arch.attn.out_bias, arch.mlp.bias] == [False] * 3


@pytest.mark.parametrize(
    "field", ["num_key_value_heads", "head_dim", "rope_scaling", "rope_theta", "pretraining_tp"]
)
def test_null_means_the_default(field: str) -> None:
    absent = {key: value for key, value in CONFIG.items() if key != field}
    assert llama.from_config({**CONFIG, field: None}) == llama.from_config(absent)


def test_null_context_length_means_the_default() -> None:
    assert llama.from_config({**CONFIG, "max_position_embeddings": None}).n_ctx == 2048


def test_dynamic_scaling_extends_the_context() -> None:
    scaling = {"rope_type": "dynamic", "factor": 3.0}
    assert (
        llama.from_config({**CONFIG, "rope_scaling": scaling}).n_ctx == 3 * CONFIG["max_position_embeddings"]
    )


def test_config_is_a_value() -> None:
    configs = {llama.from_config(config) for config in llama_grid.GRID.values()}
    assert len(configs) == len(llama_grid.GRID)
    assert llama.from_config(dict(CONFIG)) in configs


@pytest.mark.parametrize("kind", ["llamma", "gpt5", "", None, 7, ["llama"]])
def test_unknown_family_names_the_supported_ones(kind: Any) -> None:
    with pytest.raises(ConfigError, match="is not supported") as caught:
        family_of({"model_type": kind})
    assert ", ".join(FAMILIES) in str(caught.value)


def test_near_miss_of_a_family_is_pointed_out() -> None:
    with pytest.raises(ConfigError, match=r"nearest: llama\)"):
        family_of({"model_type": "lama"})
    with pytest.raises(ConfigError, match="None"):
        family_of({})


@pytest.mark.parametrize(("text", "reason"), [("{", "valid JSON"), ("[]", "an object"), ("", "valid JSON")])
def test_config_that_is_no_object_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    llama_grid.write_folder(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        jmi_models.load(tmp_path)


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        jmi_models.load(tmp_path)


def test_config_with_a_bom_or_other_encoding_is_a_config_error(tmp_path: Path) -> None:
    llama_grid.write_folder(tmp_path, CONFIG)
    (tmp_path / "config.json").write_bytes(json.dumps(CONFIG).encode("utf-16"))
    with pytest.raises(ConfigError):
        jmi_models.load(tmp_path)
