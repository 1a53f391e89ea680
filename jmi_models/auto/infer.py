"""A config and the names and shapes of tensors to an architecture and its key map.

Fields of the config come first. A size that the config leaves out is taken from a shape; where the two
contradict each other, the checkpoint does not fit and the report says so.
"""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.auto import scalars
from jmi_models.auto.forms import EMBEDDINGS, PARTS, Form, Shapes, choose, first
from jmi_models.auto.harmless import refuse_unread
from jmi_models.auto.notes import Finding, Notes
from jmi_models.auto.sizes import along, head_sizes, with_sizes
from jmi_models.decoder.experts import Experts
from jmi_models.decoder.norms import HeadNorm, Norm, Norms
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk.layout import Key
from jmi_models.families.family import Family, Reader
from jmi_models.families.qwen2_moe import dense_layers
from jmi_models.families.usual import always, read_usual
from jmi_models.params import flat

_BIASES = {
    "attn.qkv_bias": ("blocks.attn.b_Q", "blocks.attn.b_K", "blocks.attn.b_V"),
    "attn.out_bias": ("blocks.attn.b_O",),
    "mlp.bias": ("blocks.mlp.b_gate", "blocks.mlp.b_in", "blocks.mlp.b_out"),
    "unembed_bias": ("unembed.b_U",),
}
"""Path of an architecture field -> the parameters whose presence sets it."""

_CLAIMS = {
    "attention_bias": "attn.qkv_bias",
    "qkv_bias": "attn.qkv_bias",
    "use_qkv_bias": "attn.qkv_bias",
    "use_bias": "attn.qkv_bias",
    "mlp_bias": "mlp.bias",
    "use_parallel_residual": "parallel",
    "use_qk_norm": "attn.qk_norm",
    "qk_layernorm": "attn.qk_norm",
}
"""Flag of a config -> path of the architecture field on which tensors have the last word."""

_N_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_TOP_K = ("num_experts_per_tok", "experts_per_token", "num_experts_per_token")


@dataclasses.dataclass(frozen=True)
class Inference:
    """An inferred architecture.

    Attributes:
      family: called ``auto``; its key map is that of this checkpoint.
      arch: what was inferred.
      findings: which field was inferred from what.
      assumptions: what neither config nor tensors tell.
    """

    family: Family
    arch: Transformer
    findings: tuple[Finding, ...]
    assumptions: tuple[str, ...]


def infer(config: Mapping[str, Any], shapes: Shapes) -> Inference:
    """Architecture of a model whose tensors are named in the usual way.

    Args:
      config: ``config.json``, of a family that need not be known.
      shapes: of every tensor of the checkpoint, by name.

    Raises:
      ConfigError: a field that is missing and cannot be inferred, or that asks for what is not
        implemented.
    """
    notes, shapes = Notes(), _with_prefix(shapes)
    parts = {part: choose(part, shapes) for part in PARTS if part != "qk_norm"}
    keys = {**EMBEDDINGS, **{path: key for form in parts.values() for path, key in form.keys.items()}}
    read = Reader(with_sizes(config, keys, shapes, notes))
    parts["qk_norm"] = choose("qk_norm", shapes, head_sizes(read))
    keys |= parts["qk_norm"].keys
    fields = _nested(_fields(read, parts, keys, shapes, notes))
    norms = Norms(**fields.pop("norms"))
    tied = first(keys["unembed.W_U"]) not in shapes
    arch = read_usual(read, "auto", norms, partial=1.0, tied=tied, **fields)
    _conclude(read, arch, notes)
    unnamed = sorted(set(flat(arch.param_tree())) - set(keys))
    if unnamed:
        raise ConfigError(f"no tensor name is known for {', '.join(unnamed)}")
    read.finish()
    refuse_unread(read)
    return Inference(
        Family("auto", lambda config: arch, always(keys)),
        arch,
        tuple(notes.findings),
        tuple(notes.assumptions),
    )


def _with_prefix(shapes: Shapes) -> Shapes:
    """``shapes`` as a model with a head names them."""
    if any(name.startswith("model.") for name in shapes):
        return shapes
    return {name if name.startswith("lm_head.") else f"model.{name}": shape for name, shape in shapes.items()}


def _fields(
    read: Reader, parts: Mapping[str, Form], keys: Mapping[str, Key], shapes: Shapes, notes: Notes
) -> dict[str, Any]:
    """Fields of the architecture beyond sizes, by path."""
    has = lambda *paths: any(first(keys[p]) in shapes for p in paths if p in keys)  # noqa: E731
    for part, form in parts.items():
        names = [first(key) for key in form.required()]
        if names:
            there = (
                f"tensors: {names[0]} ..." if all(n in shapes for n in names) else "none fits, the nearest"
            )
            notes.found(part, form.name, there)
    norm = scalars.norm(
        read,
        gain=bool(parts["norms"].keys),
        bias=has("blocks.ln1.b", "blocks.ln2.b", "ln_final.b"),
        notes=notes,
    )
    biases = {field: has(*paths) for field, paths in _BIASES.items()}
    biases["mlp.bias"] &= "mlp.gated" in parts["mlp"].fields
    for field in (field for field, there in biases.items() if there):
        notes.found(field, True, f"tensors: {first(keys[_BIASES[field][-1]])}")
    fields: dict[str, Any] = {
        "norms.norm": norm,
        **parts["norms"].fields,
        **parts["sinks"].fields,
        **biases,
        **scalars.positions(read, head_sizes(read)["d_head"], notes),
        **scalars.multipliers(read, notes),
        "attn.qk_norm": _qk_norm(parts["qk_norm"], norm, has("blocks.attn.q_norm.b"), notes),
    }
    if "parallel" not in fields:
        fields["parallel"] = read.flag("use_parallel_residual", False)
    gated = parts["mlp"].fields.get("mlp.gated")
    mixture = {} if gated is not None else {"experts": _experts(read, parts, keys, shapes, notes)}
    act_fn = scalars.activation(read, gated is not False, notes)
    return {**fields, "mlp.gated": gated is not False, "mlp.act_fn": act_fn, **mixture}


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Values by path (``"attn.scale"``) as mappings within a mapping."""
    nested: dict[str, Any] = {}
    for path, value in fields.items():
        spec, _, name = path.rpartition(".")
        (nested.setdefault(spec, {}) if spec else nested)[name] = value
    return nested


def _qk_norm(form: Form, norm: Norm, bias: bool, notes: Notes) -> HeadNorm | None:
    if not form.keys:
        return None
    notes.assume("queries and keys are normalised before they are rotated, as in Qwen 3")
    return HeadNorm(dataclasses.replace(norm, bias=bias), **form.fields)


def _experts(
    read: Reader, parts: Mapping[str, Form], keys: Mapping[str, Key], shapes: Shapes, notes: Notes
) -> Experts:
    """The mixture in place of the MLP."""
    if dense_layers(read):
        raise ConfigError("config.json: mixtures in some layers only are read of families that jmi knows")
    read.ignore(*_N_EXPERTS, *_TOP_K, "moe_intermediate_size", "shared_expert_intermediate_size")
    top = next((name for name in _TOP_K if read.config.get(name) is not None), _TOP_K[0])
    form, shared = parts["mlp"], parts["shared expert"]
    normalise = read.flag("norm_topk_prob", form.fields["normalise"])
    if read.config.get("norm_topk_prob") is not None:
        notes.found("experts.normalise", normalise, "config: norm_topk_prob")
    else:
        notes.assume(
            f"weights of the chosen experts are {'' if normalise else 'not '}normalised, as is usual"
        )
    notes.assume("the router chooses by a softmax over all experts")
    limit = form.fields.get("limit")
    if limit is not None:
        read.only("swiglu_alpha", 1.702)
        limit = read.positive("swiglu_limit", limit)
        notes.assume(f"experts are units clamped at {limit} as in gpt-oss")
    many = next((name for name in _N_EXPERTS if read.config.get(name) is not None), _N_EXPERTS[0])
    n_experts = read.count(many, along(keys["blocks.mlp.W_router"], shapes, "n_experts"))
    return Experts(
        n_experts=n_experts,
        top_k=notes.found("experts.top_k", read.chosen(top, None, n_experts), f"config: {top}"),
        d_expert=along(keys["blocks.mlp.W_out"], shapes, "d_expert") or 1,
        normalise=normalise,
        bias="blocks.mlp.b_router" in keys,
        d_shared=along(keys["blocks.mlp.shared.W_out"], shapes, "d_shared") if shared.keys else None,
        limit=limit,
    )


def _conclude(read: Reader, arch: Transformer, notes: Notes) -> None:
    """Note what follows from the whole, and where a flag of the config says other than the tensors do."""
    found = {finding.field for finding in notes.findings}
    tie = "tie_word_embeddings"
    notes.found(
        "tied", arch.tied, f"config: {tie}" if tie in read.config else "tensors: lm_head.weight or none"
    )
    if "attn.scale" not in found:
        notes.found("attn.scale", arch.attn.scale, "one over the root of head_dim")
    if "positions.ropes" not in found and arch.positions.ropes[0] is not None:
        rope = arch.positions.ropes[0]
        text = f"base {rope.theta:g}, {rope.dim} of {arch.d_head} dimensions, {type(rope.scaling).__name__}"
        notes.found("positions.ropes", text, "config: rope_theta, rope_scaling, partial_rotary_factor")
    read.ignore(*_CLAIMS)
    for name, field in _CLAIMS.items():
        there = bool(operator.attrgetter(field)(arch))
        if read.config.get(name) not in (None, there):
            notes.assume(
                f"the config has {name}={read.config[name]}, but the tensors decide: {field}={there}"
            )
