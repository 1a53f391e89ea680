"""Unknown families: what is inferred equals what the explicit family reads, and what cannot be is said."""

import dataclasses
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import NotASafetensorsRepoError

import jmi_models
from jmi.errors import ArgumentError, ConfigError
from jmi_models.auto import CompatibilityReport, examine, infer
from jmi_models.auto.naming import convention, nearest, template
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import disk_shape
from jmi_models.disk.tensors import Stored
from jmi_models.families import FAMILIES
from jmi_models.weights import hub
from jmi_models.weights.checkpoint import plan_reads
from tests.oracles import grid
from tests.support.checkpoints import shapes_of
from tests.support.tolerances import assert_agree

Config = Mapping[str, Any]
OTHER_NAMES = ("gpt2", "gpt_neox", "gptj", "opt", "falcon", "bloom")
PARTLY = {"qwen2_moe/sparse_step", "qwen2_moe/dense_first_window", "qwen3_moe/dense_last"}
"""Mixtures in some layers only, which are read of families that jmi knows."""

USUAL = [name for name in grid.GRID if name.split("/")[0] not in OTHER_NAMES and name not in PARTLY]

UNSEEN: Mapping[str, set[str]] = {
    # A gain of one plus the weight and a scaled embedding leave no trace.
    "gemma": {"norms.norm", "embed_scale"},
    "gemma2": {"norms.norm", "embed_scale"},
    "gemma3_text": {"norms.norm", "embed_scale", "attn.qk_norm"},
    # The first checkpoints say "gelu" and mean its approximation.
    "gemma/multi_query": {"mlp.act_fn"},
    # Without layer_types the config does not say that every second layer has the window.
    "gemma2/capped": {"attn.windows"},
    "gemma2/uncapped_untied": {"attn.windows"},
    # Carries a soft-cap that its family ignores.
    "gemma3_text/capped_untied": {"attn.softcap"},
    "cohere": {"positions.interleaved"},
    # Layers without a window have no positions either.
    "cohere2": {"positions.interleaved", "positions.ropes"},
}
"""Family, or config, -> paths of fields that neither its config nor its tensors tell."""

OF_THE_KIN: Mapping[str, set[str]] = {
    name: fields for name, fields in UNSEEN.items() if "/" in name and not fields & {"norms.norm"}
}
"""The same where the model_type names the kin."""


def explicit(config: Config) -> Transformer:
    return FAMILIES[config["model_type"]].from_config(config)


def headers(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32") -> dict[str, Stored]:
    return {name: Stored(Path("x"), shape, dtype, lambda box=None: None) for name, shape in shapes.items()}


def renamed(name: str, kind: Any = "someones_model", **changes: Any) -> dict[str, Any]:
    # That its scaling is that of windowed layers, too, only its name tells.
    kind = "someones_gpt_oss" if (name.split("/")[0], kind) == ("gpt_oss", "someones_model") else kind
    return {**grid.GRID[name], "model_type": kind, **changes}


def report(name: str, drop: tuple[str, ...] = (), **changes: Any) -> CompatibilityReport:
    """Of a config of the grid with another model_type, with ``changes`` and without tensors ``drop``."""
    shapes = {stored: shape for stored, shape in shapes_of(name).items() if stored not in drop}
    return examine("it", renamed(name, **changes), headers(shapes))


def fields_of(arch: Any, lead: str = "") -> dict[str, Any]:
    """Its fields by path, those of its parts but the mixture included."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(arch):
        value = getattr(arch, field.name)
        deeper = field.name in ("norms", "attn", "mlp", "positions")
        found |= fields_of(value, f"{field.name}.") if deeper else {lead + field.name: value}
    return found


def differing(one: Transformer, other: Transformer) -> set[str]:
    ours, theirs = fields_of(one), fields_of(other)
    return {path for path in ours if ours[path] != theirs[path]} - {"family"}


def write(folder: Path, name: str, **changes: Any) -> Path:
    """A folder with a committed model under another model_type."""
    return grid.write_folder(folder, renamed(name, **changes), grid.committed(name).tensors)


@pytest.mark.parametrize("name", USUAL)
def test_inferred_architecture_is_that_of_the_family(name: str) -> None:
    found, family = report(name), name.split("/")[0]
    assert found.supported, str(found)
    assert (found.family, found.naming, found.unread, found.remarks) == ("auto", "usual", (), ())
    assert found.arch.family == "auto"
    want = UNSEEN.get(family, set()) | UNSEEN.get(name, set())
    assert differing(found.arch, explicit(grid.GRID[name])) == want


@pytest.mark.parametrize("name", [n for n in USUAL if n.split("/")[0] in UNSEEN])
def test_kin_is_known_by_its_name(name: str) -> None:
    family = name.split("/")[0]
    found = report(name, kind=f"someones_{family}")
    assert differing(found.arch, explicit(grid.GRID[name])) == OF_THE_KIN.get(name, set())
    assert any(f"model_type 'someones_{family}'" in text for text in found.assumptions[1:])


@pytest.mark.parametrize("name", [n for n in grid.COMMITTED if n in USUAL])
def test_committed_folders_are_inspected_from_their_files(name: str, tmp_path: Path) -> None:
    found = jmi_models.inspect(write(tmp_path / "m", name))
    assert found == dataclasses.replace(report(name), name=found.name, read_as=found.read_as)


@pytest.mark.parametrize(
    "name", ["llama/longrope_beyond", "stablelm/parallel", "gpt_oss/alternating", "phi3/longrope_beyond"]
)
def test_logits_of_an_inferred_model_are_those_of_the_oracle(name: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"architecture inferred; assumed: .*norms multiply by their weight"):
        lm = jmi_models.load(write(tmp_path / "m", name))
    held = grid.committed(name)
    assert_agree(lm.run(held.tokens).logits, held.sites["hook_logits"].astype(np.float32), "oracle")


@pytest.mark.parametrize("name", [n for n in grid.COMMITTED if n.split("/")[0] in OTHER_NAMES])
def test_other_names_are_recognised_and_refused(name: str, tmp_path: Path) -> None:
    family, folder = name.split("/")[0], write(tmp_path / "m", name)
    found = jmi_models.inspect(folder)
    assert (found.naming, found.supported, found.arch) == (family, False, None)
    with pytest.raises(ConfigError, match=f"named as in {family}.*set model_type to '{family}'") as caught:
        jmi_models.load(folder)
    assert str(caught.value) == str(found)


@pytest.mark.parametrize("name", grid.COMMITTED)
def test_known_families_are_reported_as_such(name: str) -> None:
    config, family = grid.GRID[name], name.split("/")[0]
    found = examine("it", config, headers(shapes_of(name)))
    assert found.supported, str(found)
    assert (found.family, found.arch, found.findings) == (family, explicit(config), ())
    assert found.naming == (family if family in OTHER_NAMES else "usual")


SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_key_value_heads",
    "head_dim",
)


@pytest.mark.parametrize("name", USUAL)
def test_sizes_that_the_config_leaves_out_follow_from_shapes(name: str) -> None:
    config = {key: value for key, value in renamed(name).items() if key not in SIZES}
    whole = infer(renamed(name), shapes_of(name))
    inferred = infer(config, shapes_of(name))
    # The width of an MLP that a mixture replaces is in no tensor.
    assert differing(inferred.arch, whole.arch) <= ({"d_mlp"} if whole.arch.experts else set())
    assert {f.field for f in inferred.findings if f.source.startswith("shape of")} == set(SIZES)


def test_number_of_heads_follows_from_their_width() -> None:
    config = {key: value for key, value in renamed("qwen3/tied").items() if key != "num_attention_heads"}
    assert (
        infer(config, shapes_of("qwen3/tied")).arch
        == infer(renamed("qwen3/tied"), shapes_of("qwen3/tied")).arch
    )
    del config["head_dim"]
    with pytest.raises(ConfigError, match="'num_attention_heads' is missing"):
        infer(config, shapes_of("qwen3/tied"))


@pytest.mark.parametrize("name", [n for n in grid.COMMITTED if n in USUAL])
def test_no_tensor_can_be_left_out_or_be_of_another_shape(name: str) -> None:
    shapes = shapes_of(name)
    for stored in {template(stored): stored for stored in shapes}.values():
        rest = {other: shape for other, shape in shapes.items() if other != stored}
        larger = {**shapes, stored: (*shapes[stored][:-1], shapes[stored][-1] + 2)}
        # A head with a bias and one without are both complete.
        assert examine("it", renamed(name), headers(rest)).supported == (stored == "lm_head.bias"), stored
        assert not examine("it", renamed(name), headers(larger)).supported, stored


STRANGE = ["x", -1, 0, 2.5, True, [], [1], {}, {"x": 1}, 10**30]


@pytest.mark.parametrize("name", ["gemma3_text/rope_parameters", "gpt_oss/alternating", "smollm3/window"])
def test_strange_fields_end_in_a_report(name: str) -> None:
    config = renamed(name, rope_scaling=None, max_window_layers=None, sliding_window_pattern=None)
    for field in config:
        for value in STRANGE:
            assert str(examine("it", {**config, field: value}, headers(shapes_of(name))))


def test_missing_tensors_come_with_the_nearest_names() -> None:
    shapes = {
        stored.replace("input_layernorm", "attention_layernorm"): shape
        for stored, shape in shapes_of("llama/grouped").items()
    }
    found = examine("it", renamed("llama/grouped"), headers({**shapes, "model.extra": (3,)}))
    (gap,) = found.missing
    assert (gap.name, gap.count) == ("model.layers.0.input_layernorm.weight", 2)
    assert gap.nearest[0] == "model.layers.0.attention_layernorm.weight"
    assert "[24], and 1 more such; nearest: model.layers.0.attention_layernorm.weight" in str(found)
    assert [str(gap) for gap in found.surplus] == [
        "model.extra [3]",
        "model.layers.0.attention_layernorm.weight [24], and 1 more such",
    ]
    assert found.verdict == "it cannot be loaded: 2 tensors missing; 3 tensors surplus"
    with pytest.raises(ConfigError, match="missing tensors"):
        found.require()


def test_what_does_not_fit_a_known_family_is_reported() -> None:
    config, shapes = grid.GRID["qwen2/tied"], shapes_of("qwen2/tied")
    del (shapes := dict(shapes))["model.norm.weight"]
    found = examine("it", {**config, "alibi": True}, headers(shapes, "I8"))
    assert [gap.name for gap in found.missing] == ["model.norm.weight"]
    assert sum(gap.count for gap in found.mismatched) == len(shapes)
    assert found.unread == ("alibi",)
    assert "is I8; only" in str(found)


def test_config_that_contradicts_the_shapes_does_not_fit() -> None:
    found = report("llama/grouped", intermediate_size=30)
    assert {gap.name.split(".")[-2] for gap in found.mismatched} == {"gate_proj", "up_proj", "down_proj"}
    assert "model.layers.0.mlp.gate_proj.weight is [28, 24], expected [30, 24], and 1 more such" in str(found)


def test_tensors_after_no_known_family_are_shown() -> None:
    found = examine("it", renamed("llama/grouped"), headers({f"encoder.{i}.w": (3,) for i in range(9)}))
    assert (found.naming, found.supported) == (None, False)
    assert "named as in no known family: encoder.0.w, encoder.1.w" in str(found)


def test_without_tensors_a_known_family_is_read_and_an_unknown_one_is_not() -> None:
    known = examine("it", grid.GRID["llama/grouped"], {}, ["no weights here"])
    assert (known.arch, known.supported) == (explicit(grid.GRID["llama/grouped"]), False)
    assert known.verdict == "it cannot be loaded: no weights here"
    assert "nothing can be inferred" in examine("it", renamed("llama/grouped"), {}).verdict


@pytest.mark.parametrize("kind", [None, 7, ["llama"], "lama"])
def test_any_model_type_is_reported(kind: Any) -> None:
    found = report("llama/grouped", kind=kind)
    assert found.supported
    assert f"model_type {None if kind is None else str(kind)!r} is not known" in found.assumptions[0]
    assert ("(nearest: llama)" in found.assumptions[0]) == ("lama" in str(kind))


# What the config says, field by field.


def norm_of(name: str, drop: str = "\0", **changes: Any) -> tuple[Any, tuple[str, ...]]:
    config = {
        key: value for key, value in renamed(name, **changes).items() if not key.endswith(("eps", "epsilon"))
    }
    shapes = {stored: shape for stored, shape in shapes_of(name).items() if drop not in stored}
    found = infer({**config, **{k: v for k, v in changes.items() if v is not None}}, shapes)
    return found.arch.norms.norm, found.assumptions


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("rms_norm_eps", "rms"),
        ("layer_norm_eps", "layer"),
        ("layer_norm_epsilon", "layer"),
        ("norm_epsilon", "layer"),
    ],
)
def test_name_of_the_epsilon_tells_the_norm(field: str, kind: str) -> None:
    norm, assumed = norm_of("llama/grouped", **{field: 1e-3})
    assert (norm.kind, norm.eps, norm.bias) == (kind, 1e-3, False)
    assert not any("epsilon" in text for text in assumed)


def test_bias_of_a_norm_makes_it_a_layer_norm_and_what_is_unsaid_is_assumed() -> None:
    norm, _ = norm_of("starcoder2/window_tied", rms_norm_eps=1e-3)
    assert (norm.kind, norm.bias) == ("layer", True)
    norm, assumed = norm_of("llama/grouped", norm_eps=1e-3)
    assert norm.kind == "rms"
    assert any("norms are rms norms" in text for text in assumed)
    norm, assumed = norm_of("llama/grouped")
    assert norm.eps == 1e-5
    assert any("the config names none" in text for text in assumed)


def test_presence_of_tensors_outweighs_flags_and_that_is_said() -> None:
    found = report("llama/attention_bias", attention_bias=False)
    assert found.arch.attn.qkv_bias
    assert (
        "the config has attention_bias=False, but the tensors decide: attn.qkv_bias=True" in found.assumptions
    )


def test_head_is_tied_where_none_is_stored() -> None:
    config = {key: value for key, value in renamed("qwen3/tied").items() if key != "tie_word_embeddings"}
    stored = shapes_of("qwen3/tied")
    assert infer(config, stored).arch.tied
    assert not infer(config, {**stored, "lm_head.weight": stored["model.embed_tokens.weight"]}).arch.tied
    untied = report("llama/grouped", drop=("lm_head.weight",))
    assert [gap.name for gap in untied.missing] == ["lm_head.weight"]


def test_parallel_blocks_with_two_norms_are_a_flag() -> None:
    arch = report("stablelm/sequential", use_parallel_residual=True).arch
    assert (arch.parallel, arch.norms.shared) == (True, False)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"sliding_window": 4}, (4,)),
        ({"sliding_window": 4, "use_sliding_window": False}, ()),
        ({"sliding_window": 4, "sliding_window_pattern": 2}, (4, None)),
        ({"sliding_window": 4, "max_window_layers": 1}, (None, 4)),
        ({"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}, (None, 4)),
    ],
)
def test_windows(changes: Config, windows: Any) -> None:
    found = report("llama/grouped", **changes)
    assert found.arch.attn.windows == windows
    said = any("has the window" in text or "have the window" in text for text in found.assumptions)
    assert said == (set(changes) <= {"sliding_window", "max_window_layers"})


def test_what_the_config_leaves_open_is_assumed_aloud() -> None:
    bare = ("rope_theta", "max_position_embeddings", "hidden_act")
    assumed = report("llama/grouped", **dict.fromkeys(bare)).assumptions
    for words in ("base is 10000", "2048 tokens", "activation is silu", "embeddings are not scaled"):
        assert any(words in text for text in assumed), words
    found = report("starcoder2/no_bias", hidden_act=None)
    assert "names no activation" in found.verdict


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale_emb": 12}, "what scale_emb=12 does to the forward pass is not known"),
        ({"oddity": 3, "other": "x"}, "what oddity=3, other='x' does"),
        ({"mup_enabled": True}, "mup_enabled"),
        ({"use_rope": False}, "use_rope=False"),
        ({"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta"),
        ({"rope_parameters": {"full_attention": {}, "other_attention": {}}}, "other_attention"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [1, 2]}}, "mrope_section"),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "sliding_window": 4,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            "does not say whether the scaling",
        ),
        ({"logits_scaling": 0}, "'logits_scaling' must be a positive number"),
        ({"logits_scaling": 2, "logit_scale": 2}, "both give the logit_scale"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"alibi": True}, "alibi"),
        ({"hidden_act": "xielu"}, "'xielu' is unknown"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "layer_types"),
        ({"quantization_config": {"quant_method": "hqq"}}, "'hqq'"),
        ({"kind": "nanochat"}, "without weights"),
        ({"kind": "phimoe"}, "chooses experts"),
    ],
)
def test_what_is_known_not_to_be_implemented_is_refused(changes: Config, words: str) -> None:
    found = report("llama/grouped", **changes)
    assert not found.supported
    assert words in found.verdict


def test_harmless_and_unread_fields_are_listed() -> None:
    found = report("llama/grouped", residual_scale=1.0, mup_enabled=False, mlp_dropout=0.1, sep_token_id=3)
    assert found.supported, str(found)
    assert found.unread == ("mlp_dropout", "mup_enabled", "residual_scale", "sep_token_id")
    assert "config fields without effect: mlp_dropout; mup_enabled; residual_scale" in found.caution()


def test_weights_in_mxfp4_are_recognised() -> None:
    config = {**grid.GRID["gpt_oss/alternating"], "hidden_size": 64, "intermediate_size": 32}
    arch = explicit(config)
    reads = plan_reads(arch, FAMILIES["gpt_oss"], {})
    stored = headers({name: disk_shape(targets[0].key, arch.sizes()) for name, targets in reads.items()})
    for name in [name for name in stored if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, rows, columns = stored.pop(name).shape
        packed = {
            f"{name}_blocks": (experts, columns, rows // 32, 16),
            f"{name}_scales": (experts, columns, rows // 32),
        }
        stored |= headers(packed, "U8")
    found = examine(
        "it",
        {**config, "model_type": "some_gpt_oss", "quantization_config": {"quant_method": "mxfp4"}},
        stored,
    )
    assert found.supported, str(found)
    assert differing(found.arch, arch) == set()


# Loading.


def test_checkpoint_saved_without_its_head_loads(tmp_path: Path) -> None:
    held = grid.committed("qwen3/tied")
    bare = {name.removeprefix("model."): value for name, value in held.tensors.items()}
    folder = grid.write_folder(tmp_path / "m", renamed("qwen3/tied"), bare)
    with pytest.warns(UserWarning, match="architecture inferred"):
        lm = jmi_models.load(folder)
    assert differing(lm.arch, explicit(grid.GRID["qwen3/tied"])) == set()
    with pytest.raises(ArgumentError, match="'auto' names its tensors"):
        jmi_models.save(tmp_path / "again", lm.arch, lm.params, renamed("qwen3/tied"))


def test_architecture_of_an_unknown_family_needs_its_weights(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "olmo2/grouped")
    with pytest.warns(UserWarning, match="architecture inferred"):
        assert jmi_models.architecture(folder).family == "auto"
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"neither model\.safetensors.*nothing can be inferred"):
        jmi_models.architecture(folder)
    assert "neither model.safetensors" in jmi_models.inspect(folder).verdict


@pytest.fixture
def on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub model of which only the config is here."""
    (tmp_path / "config.json").write_text(json.dumps(renamed("llama/grouped")))
    monkeypatch.setattr(hub, "find", lambda name, *args, **kwargs: hub.Source(name, tmp_path, "a" * 40))
    return tmp_path


def test_hub_model_is_inspected_without_its_weights(
    on_the_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {
        n: types.SimpleNamespace(shape=list(s), dtype="BF16") for n, s in shapes_of("llama/grouped").items()
    }
    asked = []

    def metadata(name: str, revision: str) -> Any:
        asked.append((name, revision))
        files = {"one.safetensors": types.SimpleNamespace(tensors=tensors)}
        return types.SimpleNamespace(
            files_metadata=files, weight_map=dict.fromkeys(tensors, "one.safetensors")
        )

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", metadata)
    found = jmi_models.inspect("someone/model")
    assert found.supported
    assert found.arch == infer(renamed("llama/grouped"), shapes_of("llama/grouped")).arch
    assert asked == [("someone/model", "a" * 40)]


@pytest.mark.parametrize("error", [NotASafetensorsRepoError("x"), OSError("no route"), OSError()])
def test_hub_that_does_not_tell_is_reported(
    on_the_hub: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", refuse)
    found = jmi_models.inspect("someone/model")
    assert not found.supported
    assert "someone/model" in found.errors[0]


# Names.


def test_template_and_nearest_names() -> None:
    assert template("model.layers.12.mlp.experts.3.w1.weight") == "model.layers.*.mlp.experts.*.w1.weight"
    assert template("h.0.ln_1.weight") == "h.*.ln_1.weight"
    names = [f"model.layers.{i}.attention.wq.weight" for i in range(3)]
    assert nearest("model.layers.0.attention.q.weight", names) == (names[0],)
    assert nearest("x", names) == ()


@pytest.mark.parametrize("name", grid.COMMITTED)
def test_naming_is_recognised_without_the_prefix_as_well(name: str) -> None:
    family = FAMILIES[name.split("/")[0]]
    bare = [stored.removeprefix(family.prefix) for stored in shapes_of(name)]
    assert convention(bare) == (family.name if family.name in OTHER_NAMES else "usual")
