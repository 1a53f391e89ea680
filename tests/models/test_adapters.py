"""LoRA adapters: merged as by hand and as in peft, left out on request, or refused in one sentence."""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jmi_models
from jmi.errors import CheckpointError, ConfigError, JmiError
from tests.oracles import grid
from tests.support.checkpoints import assert_same
from tests.support.committed import put_together

PLAIN = {"peft_type": "LORA", "base_model_name_or_path": "someone/model", "r": 2, "lora_alpha": 6}
MODELS: dict[str, tuple[str, ...]] = {
    # One matrix, one that is a part of a fused one, one stored inputs first.
    "llama/longrope_beyond": ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"),
    "phi3/longrope_beyond": ("model.layers.1.self_attn.qkv_proj", "model.layers.0.mlp.gate_up_proj"),
    "gpt2/plain": ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"),
    "qwen3/tied": ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"),
}

NO_RANKS: Mapping[str, int] = {}


def inputs_first(name: str) -> bool:
    return name.startswith("gpt2")


def pair(name: str, module: str, rank: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A ``[r, inputs]`` and B ``[outputs, r]`` for a module of a model."""
    shape = grid.committed(name).tensors[f"{module}.weight"].shape
    outputs, inputs = shape[::-1] if inputs_first(name) else shape
    rng = np.random.default_rng([len(module), rank])
    a, b = rng.standard_normal((rank, inputs)), rng.standard_normal((outputs, rank))
    return a.astype(np.float32), b.astype(np.float32)


def tensors(name: str, ranks: Mapping[str, int] = NO_RANKS) -> dict[str, np.ndarray]:
    out = {}
    for module in MODELS[name]:
        a, b = pair(name, module, ranks.get(module, 2))
        out |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
    return out


def write(folder: Path, name: str, held: Mapping[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """A whole model with an adapter beside it."""
    grid.write_folder(folder, grid.GRID[name], grid.committed(name).tensors)
    config = {**PLAIN, "fan_in_fan_out": inputs_first(name), **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(dict(tensors(name) if held is None else held), folder / "adapter_model.safetensors")
    return folder


def changed(
    name: str, scales: Mapping[str, float], ranks: Mapping[str, int] = NO_RANKS, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Tensors of the model whose matrices were changed in float64."""
    weights = dict(grid.committed(name).tensors)
    for module in MODELS[name]:
        a, b = (part.astype(np.float64) for part in pair(name, module, ranks.get(module, 2)))
        change = scales[module] * (b @ a)
        change = change.T if inputs_first(name) else change
        weights[f"{module}.weight"] = (weights[f"{module}.weight"] + change).astype(dtype)
    return weights


def by_hand(
    name: str, scales: Mapping[str, float], ranks: Mapping[str, int] = NO_RANKS, dtype: str = "float32"
) -> Any:
    """Parameters of that model."""
    return put_together(grid.GRID[name], changed(name, scales, ranks, dtype), dtype).params


def close(got: Any, want: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-6), got, want)


def merged(folder: Path, words: str = "", **kwargs: Any) -> Any:
    with pytest.warns(
        UserWarning, match=f"LoRA adapter in it is merged into 2 matrices{words}; adapter=False leaves"
    ):
        return jmi_models.load(folder, **kwargs)


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_beside_whole_weights_is_merged_and_said(name: str, tmp_path: Path) -> None:
    lm = merged(write(tmp_path / "with", name))
    close(lm.params, by_hand(name, dict.fromkeys(MODELS[name], 3.0)))
    without = jmi_models.load(tmp_path / "with", adapter=False)
    plain = jmi_models.load(grid.write_folder(tmp_path / "x", grid.GRID[name], grid.committed(name).tensors))
    assert_same(without.params, plain.params)
    assert len({lm.identity(), without.identity(), plain.identity()}) == 3


def test_ranks_and_alphas_of_modules_and_the_stabilised_scale(tmp_path: Path) -> None:
    name = "llama/longrope_beyond"
    first, second = MODELS[name]
    held = tensors(name, {second: 3})
    changes = {"rank_pattern": {"down_proj": 3}, "alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 5}}
    lm = merged(write(tmp_path / "one", name, held, **changes))
    close(lm.params, by_hand(name, {first: 5 / 2, second: 6 / 3}, {second: 3}))
    lm = merged(write(tmp_path / "two", name, use_rslora=True))
    close(lm.params, by_hand(name, dict.fromkeys((first, second), 6 / 2**0.5)))


def test_a_model_saved_without_its_head_is_changed_as_well(tmp_path: Path) -> None:
    name = "gpt2/plain"
    folder = write(tmp_path / "with", name)
    bare = {k.removeprefix("transformer."): v for k, v in grid.committed(name).tensors.items()}
    save_file(bare, folder / "model.safetensors")
    close(merged(folder).params, by_hand(name, dict.fromkeys(MODELS[name], 3.0)))


def test_an_adapter_alone_is_loaded_with_a_local_base_or_names_it(tmp_path: Path) -> None:
    name = "llama/longrope_beyond"
    folder = write(tmp_path / "whole", name)
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.move(folder / file, alone / file)
    with pytest.raises(ConfigError, match="an adapter alone, of the model 'someone/model': download"):
        jmi_models.load(alone)
    (alone / "adapter_config.json").write_text(json.dumps({**PLAIN, "base_model_name_or_path": str(folder)}))
    lm = merged(alone)
    close(lm.params, by_hand(name, dict.fromkeys(MODELS[name], 3.0)))
    assert " + " in str(lm.identity())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "use_dora=True: only plain LoRA is read"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names lm_head, but .* holds no tensor of it"),
        ({"bias": "all"}, "bias='all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"of_tomorrow": 1}, "of_tomorrow=1"),
        ({"peft_type": "IA3"}, "of kind 'IA3'"),
        ({"peft_type": None}, "of kind None"),
        ({"r": 3}, "their rank is not 3"),
        ({"r": "2"}, "'r' must be a positive number"),
        ({"lora_alpha": -1}, "'lora_alpha' must be"),
        ({"use_rslora": "yes"}, "'use_rslora' must be true or false"),
        ({"rank_pattern": ["x"]}, "'rank_pattern' must be an object"),
        ({"rank_pattern": {"(a+)+b": 2}}, "not a plain name"),
        ({"alpha_pattern": {"\\": 2}}, "is no pattern"),
        ({"fan_in_fan_out": True}, r"q_proj.weight by \[24, 32\], but it is \[32, 24\]"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    refused(write(tmp_path, "llama/longrope_beyond", **changes), words)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({FIRST + "B.weight": None}, "has no lora_B"),
        ({FIRST + "magnitude_vector": np.ones(4, np.float32)}, "magnitude_vector .* not a matrix A or B"),
        ({"model.norm.weight": np.ones(4, np.float32)}, "not a matrix A or B"),
        ({FIRST + "A.weight": np.ones((2, 3), np.float32)}, r"by \[\d+, 3\], but it is"),
        ({FIRST + "A.weight": np.ones((2, 3), np.int8)}, "I8 is not a matrix"),
        ({FIRST + "A.weight": np.ones((5, 24), np.float32)}, "their rank is not 2"),
        (
            {f"base_model.model.x.lora_{x}.weight": np.ones((2, 2), np.float32) for x in "AB"},
            "no tensor x.wei",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    held = {k: v for k, v in {**tensors("llama/longrope_beyond"), **changes}.items() if v is not None}
    refused(write(tmp_path, "llama/longrope_beyond", held), words)


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def whole(folder: Path, name: str, given: Mapping[str, np.ndarray], **changes: Any) -> Path:
    """A model with an adapter that holds ``given`` beside its pairs."""
    also = {f"base_model.model.{key}": value for key, value in given.items()}
    return write(folder, name, {**tensors(name), **also}, **changes)


def with_tensors(name: str, changes: Mapping[str, np.ndarray], **config: Any) -> Any:
    """The model with these tensors in place of its own and its matrices changed."""
    weights = {**changed(name, dict.fromkeys(MODELS[name], 3.0)), **changes}
    return put_together({**grid.GRID[name], **config}, weights)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def test_modules_that_were_trained_whole_replace_those_of_the_model(tmp_path: Path) -> None:
    name = "llama/longrope_beyond"
    norm, down = "model.layers.1.input_layernorm.weight", "model.layers.0.mlp.down_proj.weight"
    given = {HEAD: drawn(61, 24), norm: drawn(24), down: drawn(24, 28)}
    folder = whole(tmp_path / "a", name, given, modules_to_save=["lm_head", "input_layernorm", "mlp"])
    with pytest.warns(UserWarning, match="merged into 2 matrices and replaces 3 tensors whole"):
        lm = jmi_models.load(folder)
    close(lm.params, with_tensors(name, given).params)


def test_embeddings_that_were_resized_with_the_adapter(tmp_path: Path) -> None:
    name = "llama/longrope_beyond"
    given = {EMBED: drawn(64, 24), HEAD: drawn(64, 24)}
    lm = merged(whole(tmp_path / "a", name, given), words=" and replaces 2 tensors whole")
    assert lm.arch.d_vocab == 64
    close(lm.params, with_tensors(name, given, vocab_size=64).params)
    # One of the two alone does not fit the other.
    refused(
        whole(tmp_path / "b", name, {EMBED: given[EMBED]}), r"lm_head.weight is \[61, 24\], expected \[64"
    )


def test_what_is_done_to_one_of_two_tied_matrices_is_not_done_to_the_other(tmp_path: Path) -> None:
    name = "qwen3/tied"
    old, new = grid.committed(name).tensors[EMBED], drawn(61, 24)
    told = {"words": " and replaces 1 tensors whole"}
    lm = merged(whole(tmp_path / "a", name, {EMBED: new}, modules_to_save=["embed_tokens"]), **told)
    np.testing.assert_array_equal(lm.params["embed"]["W_E"], new)
    np.testing.assert_array_equal(lm.params["unembed"]["W_U"], old.T)
    lm = merged(whole(tmp_path / "b", name, {HEAD: new}, modules_to_save=["lm_head"]), **told)
    np.testing.assert_array_equal(lm.params["embed"]["W_E"], old)
    np.testing.assert_array_equal(lm.params["unembed"]["W_U"], new.T)
    saved = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    lm = merged(whole(tmp_path / "c", name, {EMBED: new}, **saved), **told)
    assert lm.arch.tied
    np.testing.assert_array_equal(lm.params["embed"]["W_E"], new)


HOSTILE_CONFIGS: tuple[Any, ...] = (
    *("{", "[]", "null", '"LORA"', "{}", "[" * 9999, '{"peft_type": "LORA"' + ',"a":' * 9999),
    *({"peft_type": kind} for kind in ("", 1, ["LORA"], {}, "LOHA", "ADALORA", "PROMPT_TUNING", "lora")),
    *({"r": rank} for rank in (0, -1, 1.5, True, [2], {}, "two", 1e30, 10**40)),
    *({"lora_alpha": alpha} for alpha in (0, True, [], "6", 1e30)),
    *({"use_rslora": value} for value in (1, "true", [1])),
    *({"use_dora": True}, {"use_bdlora": {}, "alora_invocation_tokens": [1]}, {"bias": "lora_only"}),
    *({"modules_to_save": value} for value in ("lm_head", [1], [""], {"a": 1}, ["lm_head"])),
    *({"rank_pattern": value} for value in ([1], {"q_proj": "2"}, {"q_proj": 0}, {"(": 1}, {".*": 2})),
    *({"alpha_pattern": value} for value in ("x", {"q_proj": None}, {"x" * 9999 + "(": 1})),
    {"target_parameters": ["mlp.experts.gate_up_proj"]},
    {"base_model_name_or_path": "x", "exotic": {"a": [1] * 9999}},
)


@pytest.mark.parametrize("which", range(len(HOSTILE_CONFIGS)))
def test_hostile_configs_end_in_one_clear_error(which: int, tmp_path: Path) -> None:
    given = HOSTILE_CONFIGS[which]
    folder = write(tmp_path, "llama/longrope_beyond")
    if isinstance(given, str):
        (folder / "adapter_config.json").write_text(given)
    else:
        (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **given}))
    refused(folder, "adapter", longest=600)


HOSTILE_FILES: Mapping[str, Callable[[dict[str, np.ndarray]], Any]] = {
    "nothing": lambda held: {},
    "no A": lambda held: {k: v for k, v in held.items() if "lora_A" not in k},
    "three axes": lambda held: {**held, FIRST + "A.weight": np.ones((2, 24, 1), np.float32)},
    "integers": lambda held: {**held, FIRST + "B.weight": np.ones((32, 2), np.int32)},
    "of no module": lambda held: {**held, "base_model.model.lora_A.weight": np.ones((2, 2), np.float32)},
    "a name with commands": lambda held: {**held, "\x1b[2Jlora_A.weight": np.ones((2, 2), np.float32)},
    "DoRA": lambda held: {**held, FIRST + "magnitude_vector": np.ones(32, np.float32)},
    "an embedding's A": lambda held: {**held, FIRST + "embedding_A": np.ones((2, 24), np.float32)},
    "rank 0": lambda held: {FIRST + "A.weight": np.ones((0, 24)), FIRST + "B.weight": np.ones((32, 0))},
    "a bias": lambda held: {**held, FIRST[:-6] + ".bias": np.ones(32, np.float32)},
    "a whole matrix": lambda held: {**held, FIRST[:-6] + ".weight": np.ones((32, 24), np.float32)},
    "infinite": lambda held: {k: np.full_like(v, np.inf) for k, v in held.items()},
    "overflowing": lambda held: {k: np.full_like(v, 1e30) for k, v in held.items()},
}


@pytest.mark.parametrize("which", HOSTILE_FILES)
def test_hostile_files_end_in_one_clear_error(which: str, tmp_path: Path) -> None:
    held = HOSTILE_FILES[which](tensors("llama/longrope_beyond"))
    refused(write(tmp_path, "llama/longrope_beyond", held), "adapter|weights are not finite", longest=600)


def test_absent_damaged_and_not_finite_files_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama/longrope_beyond")
    held = tensors("llama/longrope_beyond")
    held[FIRST + "A.weight"][0, 0] = np.nan
    save_file(held, folder / "adapter_model.safetensors")
    refused(folder, "not finite.*: model.layers.0.self_attn.q_proj.weight")
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    refused(folder, "adapter_model.safetensors: not a readable safetensors file")
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, "adapter_model.safetensors is not")
    (folder / "adapter_config.json").write_text("[" * 100_000)
    refused(folder, "adapter_config.json is nested too deeply")
    assert jmi_models.load(folder, adapter=False)


def refused(folder: Path, words: str, longest: int = 2000) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(JmiError, match=words) as caught:
            jmi_models.load(folder)
    assert isinstance(caught.value, (ConfigError, CheckpointError))
    assert len(str(caught.value)) <= longest
    assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_peft(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    peft = pytest.importorskip("peft", reason="the live comparison of adapters needs peft")
    transformers = pytest.importorskip("transformers", reason="the live oracle needs transformers")
    grid.write_folder(tmp_path, grid.GRID[name], grid.committed(name).tensors)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ends = [module.split(".")[-1] for module in MODELS[name]]
    lora = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=ends,
        rank_pattern={ends[0]: 2},
        alpha_pattern={ends[1]: 7},
        use_rslora=True,
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    changed = peft.get_peft_model(model, lora).eval()
    changed.save_pretrained(tmp_path)
    tokens = grid.committed(name).tokens
    with torch.no_grad():
        want = changed(torch.as_tensor(tokens.astype(np.int64))).logits.numpy()
    got = np.asarray(jmi_models.load(tmp_path).run(tokens).logits)
    plain = np.asarray(jmi_models.load(tmp_path, adapter=False).run(tokens).logits)
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()
    assert np.abs(plain - want).max() > 1e-2 * np.abs(want).max()


PEFT_CASES: Mapping[str, dict[str, Any]] = {
    "head": {"modules_to_save": ["lm_head"]},
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "still tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "norms and MLPs": {"modules_to_save": ["input_layernorm", "mlp"]},
    "pair of the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "pair of the head": {"target_modules": ["q_proj", "lm_head"]},
    "resized": {"resized": 3},
    "resized, pair of the embedding": {"resized": 3, "target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PEFT_CASES)
@pytest.mark.parametrize("name", ["llama/longrope_beyond", "qwen3/tied"])
def test_whole_modules_embeddings_and_heads_are_those_of_peft(name: str, case: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    peft = pytest.importorskip("peft", reason="the live comparison of adapters needs peft")
    transformers = pytest.importorskip("transformers", reason="the live oracle needs transformers")
    options = {"target_modules": ["q_proj"], **PEFT_CASES[case]}
    more = options.pop("resized", 0)
    base, both = (
        grid.write_folder(tmp_path / each, grid.GRID[name], grid.committed(name).tensors)
        for each in ("base", "both")
    )

    def model() -> Any:
        torch.manual_seed(1)
        found = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
        if more:
            found.resize_token_embeddings(grid.GRID[name]["vocab_size"] + more)
        return found

    torch.manual_seed(0)
    trained = peft.get_peft_model(model(), peft.LoraConfig(r=2, init_lora_weights=False, **options)).eval()
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    trained.save_pretrained(both)
    # What peft reads of its own file, not what was in memory.
    again = peft.PeftModel.from_pretrained(model(), both).eval()
    tokens = grid.committed(name).tokens
    with torch.no_grad():
        want = again(torch.as_tensor(tokens.astype(np.int64))).logits.numpy()
    if more and len(options["target_modules"]) > 1 and not grid.GRID[name].get("tie_word_embeddings"):
        # peft leaves the resized head out of its file, and draws its new rows anew.
        return refused(both, r"lm_head.weight is \[61, 24\], expected \[64, 24\]")
    got = np.asarray(jmi_models.load(both).run(tokens).logits)
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()
