"""An adapter inside a model: at every strength it is the model merged by hand, in one program."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jmi
import jmi_models
from jmi.errors import ArgumentError, CheckpointError, ConfigError, HookError
from tests.models.test_adapters import FIRST, MODELS, by_hand, pair, tensors, write
from tests.oracles import grid
from tests.support.checkpoints import compiled
from tests.support.committed import load, relative

EVERY = "*.hook_adapter"
SCALE = 0.3
STRENGTHS = (0.0, 0.3, 1.0, -2.0)
ALL: Mapping[str, tuple[str, ...]] = {
    "llama/longrope_beyond": tuple(
        f"model.layers.{i}.{module}"
        for i in (0, 1)
        for module in (
            *(f"self_attn.{x}_proj" for x in "qkvo"),
            *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
        )
    ),
    # Fused projections, matrices stored inputs first, parallel blocks, biases, a layer without a change.
    "phi3/longrope_beyond": (*MODELS["phi3/longrope_beyond"], "model.layers.0.self_attn.o_proj"),
    "gpt2/plain": (*MODELS["gpt2/plain"], "transformer.h.1.mlp.c_fc", "transformer.h.0.attn.c_proj"),
    "gpt_neox/parallel": (
        "gpt_neox.layers.0.attention.query_key_value",
        "gpt_neox.layers.1.mlp.dense_h_to_4h",
        "gpt_neox.layers.1.attention.dense",
    ),
    "opt/pre_norm": ("model.decoder.layers.0.self_attn.k_proj", "model.decoder.layers.1.fc2"),
}


@pytest.fixture(autouse=True)
def every_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, modules in ALL.items():
        monkeypatch.setitem(MODELS, name, modules)


def small(folder: Path, name: str) -> Path:
    """A model with an adapter of the size of its weights."""
    return write(folder, name, lora_alpha=2 * SCALE)


def merged(name: str, strength: float, dtype: str) -> Any:
    """The model with its matrices changed by hand."""
    scales = dict.fromkeys(MODELS[name], SCALE * strength)
    with jax.enable_x64(dtype == "float64"):
        return dataclasses.replace(load(name, dtype), params=by_hand(name, scales, dtype=dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ALL)
def test_a_sweep_over_strengths_is_merging_by_hand_at_each(name: str, dtype: str, tmp_path: Path) -> None:
    folder, tokens = small(tmp_path, name), grid.committed(name).tokens
    bound = 1e-10 if dtype == "float64" else 1e-5
    with jax.enable_x64(dtype == "float64"):
        tuned = jmi_models.adapt(load(name, dtype), folder)
        cells = jmi.Grid(strength=np.asarray(STRENGTHS, dtype))
        hooks = {EVERY: jmi.Scale(cells["strength"])}
        got = jmi.sweep(tuned, tokens, hooks, lambda out: out.logits, progress=False)
        want = [merged(name, strength, dtype).run(tokens).logits for strength in STRENGTHS]
        for one, other in zip(got, want, strict=True):
            assert relative(one, other) <= bound
        # Where one position is wanted, the last layer computes that alone.
        last = jmi.sweep(tuned, tokens, hooks, lambda out: out.logits, logits_at=-1, progress=False)
        assert relative(last, np.asarray(got)[:, :, -1]) <= bound
    assert relative(want[0], want[2]) > 1e-2


def test_base_and_tuned_side_by_side_and_what_the_adapter_adds(tmp_path: Path) -> None:
    name = "llama/longrope_beyond"
    folder, tokens = small(tmp_path, name), grid.committed(name).tokens
    lm = load(name)
    tuned = jmi_models.adapt(lm, folder)
    point, added = "blocks.1.attn.hook_v", "blocks.1.attn.hook_v.hook_adapter"
    out = tuned.run(tokens, {"blocks.0.*.hook_adapter": jmi.Zero()}, [point, added, "blocks.1.attn.hook_in"])
    plain = lm.run(tokens, capture=[point, "blocks.1.attn.hook_in"])
    np.testing.assert_allclose(out["blocks.1.attn.hook_in"], plain["blocks.1.attn.hook_in"], atol=1e-5)
    a, b = pair(name, "model.layers.1.self_attn.v_proj")
    want = (np.asarray(out["blocks.1.attn.hook_in"]) @ (SCALE * b @ a).T).reshape(np.shape(out[added]))
    np.testing.assert_allclose(out[added], want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out[point] - plain[point], want, rtol=1e-4, atol=1e-4)
    # Another strength, at another head and position, is the same program.
    tuned.run(tokens, {added: jmi.Scale(np.float32(0.5), heads=0, positions=2)})
    again = {added: jmi.Scale(np.float32(0.1), heads=1, positions=3)}
    assert not compiled(lambda: jax.block_until_ready(tuned.run(tokens, again).logits))


@pytest.mark.parametrize("name", ["llama/longrope_beyond", "gpt2/plain"])
def test_cells_that_start_later_give_what_single_runs_give(name: str, tmp_path: Path) -> None:
    folder, tokens = small(tmp_path, name), grid.committed(name).tokens
    with jax.enable_x64(True):
        tuned = jmi_models.adapt(load(name, "float64"), folder)
        cells = jmi.Grid(layer=[0, 1], position=[3, 8], strength=np.asarray([0.0, 0.5]))
        point = "attn.hook_k.hook_adapter"
        scale = jmi.Scale(cells["strength"], positions=cells["position"])
        hooks = {f"blocks.*.{point}": jmi.At(cells["layer"], scale)}
        metric = jmi.metrics.LogProb(5)
        got = jmi.sweep(tuned, tokens, hooks, metric, logits_at=-1, progress=False)
        for i, j, k in np.ndindex(2, 2, 2):
            single = {f"blocks.{i}.{point}": jmi.Scale([0.0, 0.5][k], positions=[3, 8][j])}
            np.testing.assert_allclose(got[i, j, k], metric(tuned.run(tokens, single)), rtol=1e-12)


def test_it_generates_and_differentiates_as_the_merged_model(tmp_path: Path) -> None:
    name = "gpt2/plain"
    folder, tokens = small(tmp_path, name), grid.committed(name).tokens
    tuned, by_hands = jmi_models.adapt(load(name), folder), merged(name, 1.0, "float32")
    np.testing.assert_array_equal(tuned.generate(tokens, 5).tokens, by_hands.generate(tokens, 5).tokens)
    metric = jmi.metrics.LogProb(5)

    @jax.jit
    def at(strength: Any) -> Any:
        return metric(jmi.forward(tuned.arch, tuned.params, tokens, {EVERY: jmi.Scale(strength)})).sum()

    slope = jax.jit(jax.grad(at))(np.float32(0.5))
    ahead, behind = (at(np.float32(0.5 + step)) for step in (1e-2, -1e-2))
    np.testing.assert_allclose((ahead - behind) / 2e-2, slope, rtol=2e-2)


def test_two_adapters_go_in_by_names_of_their_own(tmp_path: Path) -> None:
    name = "llama/longrope_beyond"
    folder, tokens = small(tmp_path, name), grid.committed(name).tokens
    both = jmi_models.adapt(jmi_models.adapt(load(name), folder), folder, name="second")
    hooks = {EVERY: jmi.Scale(0.75), "*.hook_second": jmi.Scale(0.25)}
    want = merged(name, 1.0, "float32").run(tokens).logits
    assert relative(both.run(tokens, hooks).logits, want) <= 1e-5
    with pytest.raises(HookError, match="there is a point of this name already"):
        jmi_models.adapt(both, folder)


def test_points_and_parts_that_would_lack_the_adapter_are_gone(tmp_path: Path) -> None:
    name = "llama/longrope_beyond"
    tuned, tokens = jmi_models.adapt(load(name), small(tmp_path, name)), grid.committed(name).tokens
    for point in ("hook_q_input", "hook_k_input", "hook_v_input", "attn.hook_result"):
        assert f"blocks.*.{point}" in load(name).arch.sites()
        with pytest.raises(HookError, match=f"{point}: this model has no such point"):
            tuned.run(tokens, capture=[f"blocks.*.{point}"])
    with pytest.raises(ArgumentError, match=r"needs an architecture with head_\w+\(\)"):
        jmi.interp.direct_logit_attribution(tuned, tokens, 3, by="head")


@pytest.mark.parametrize(
    ("name", "module", "words"),
    [
        ("qwen3/tied", "model.layers.0.self_attn.q_proj", "queries and keys are normalised after it"),
        ("olmo/clipped", "model.layers.0.self_attn.v_proj", "what it writes is clamped"),
        ("llama/longrope_beyond", "lm_head", "it is outside of the layers"),
        ("qwen2_moe/shared", "model.layers.0.mlp.experts.0.up_proj", "it is of experts"),
    ],
)
def test_what_cannot_be_added_exactly_is_refused(
    name: str, module: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, name, (module,))
    with pytest.raises(ConfigError, match=f"{words}: put the adapter beside the weights"):
        jmi_models.adapt(load(name), write(tmp_path, name))


def test_other_models_and_other_files_are_refused(tmp_path: Path) -> None:
    name = "llama/longrope_beyond"
    folder = write(tmp_path, name)
    with pytest.raises(ConfigError, match=r"by \[\d+, \d+\], but the model has it as"):
        jmi_models.adapt(load("mistral/window"), folder)
    with pytest.raises(ConfigError, match="has no such matrix; is it an adapter of 'someone/model'"):
        jmi_models.adapt(load("gpt2/plain"), folder)
    with pytest.raises(ArgumentError, match="name="):
        jmi_models.adapt(load(name), folder, name="a b")
    with pytest.raises(ArgumentError, match="lm="):
        jmi_models.adapt(load(name).arch, folder)  # type: ignore[arg-type]
    held = tensors(name)
    held[FIRST + "A.weight"][0, 0] = np.inf
    save_file(held, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        jmi_models.adapt(load(name), folder)
    head = {"base_model.model.lm_head.weight": grid.committed(name).tensors["lm_head.weight"]}
    write(folder, name, {**tensors(name), **head}, modules_to_save=["lm_head"])
    with pytest.raises(ConfigError, match=r"holds lm_head\.weight whole, which has no strength"):
        jmi_models.adapt(load(name), folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match=r"no adapter_config\.json"):
        jmi_models.adapt(load(name), folder)
