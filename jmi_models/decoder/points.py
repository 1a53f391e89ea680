"""The points of a decoder, the axes of the tensor at each, and in which layers they are.

Names are TransformerLens's.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jmi.model.sites import Site, sites_of

if TYPE_CHECKING:
    from jmi_models.decoder.transformer import Transformer

_RESID = ("batch", "pos", "d_model")
_SCALE = ("batch", "pos", "one")
_Q = ("batch", "pos", "head", "d_head")
_KV = ("batch", "pos", "kv_head", "d_head")
_ATTENTION = ("batch", "head", "query", "key")
_MLP = ("batch", "pos", "d_mlp")
_LOGITS = ("batch", "pos", "vocab")

_AXES: Mapping[str, tuple[str, ...]] = {
    "hook_embed": _RESID,
    "hook_pos_embed": _RESID,
    "blocks.*.hook_resid_pre": _RESID,
    "blocks.*.ln1.hook_scale": _SCALE,
    "blocks.*.ln1.hook_normalized": _RESID,
    "blocks.*.attn.hook_in": _RESID,
    "blocks.*.hook_q_input": ("batch", "pos", "head", "d_model"),
    "blocks.*.hook_k_input": ("batch", "pos", "kv_head", "d_model"),
    "blocks.*.hook_v_input": ("batch", "pos", "kv_head", "d_model"),
    "blocks.*.attn.hook_q": _Q,
    "blocks.*.attn.hook_k": _KV,
    "blocks.*.attn.hook_v": _KV,
    "blocks.*.attn.hook_rot_q": _Q,
    "blocks.*.attn.hook_rot_k": _KV,
    "blocks.*.attn.hook_attn_scores": _ATTENTION,
    "blocks.*.attn.hook_pattern": _ATTENTION,
    "blocks.*.attn.hook_z": _Q,
    "blocks.*.attn.hook_result": ("batch", "pos", "head", "d_model"),
    "blocks.*.attn.hook_out": _RESID,
    "blocks.*.ln1_post.hook_scale": _SCALE,
    "blocks.*.ln1_post.hook_normalized": _RESID,
    "blocks.*.hook_attn_out": _RESID,
    "blocks.*.hook_resid_mid": _RESID,
    "blocks.*.hook_mlp_in": _RESID,
    "blocks.*.ln2.hook_scale": _SCALE,
    "blocks.*.ln2.hook_normalized": _RESID,
    "blocks.*.mlp.hook_in": _RESID,
    "blocks.*.mlp.hook_router_logits": ("batch", "pos", "expert"),
    "blocks.*.mlp.hook_expert_weights": ("batch", "pos", "expert"),
    "blocks.*.mlp.hook_pre": _MLP,
    "blocks.*.mlp.hook_pre_linear": _MLP,
    "blocks.*.mlp.hook_post": _MLP,
    "blocks.*.mlp.hook_out": _RESID,
    "blocks.*.ln2_post.hook_scale": _SCALE,
    "blocks.*.ln2_post.hook_normalized": _RESID,
    "blocks.*.hook_mlp_out": _RESID,
    "blocks.*.hook_resid_post": _RESID,
    "ln_final.hook_scale": _SCALE,
    "ln_final.hook_normalized": _RESID,
    "hook_final_norm": _RESID,
    "unembed.hook_in": _RESID,
    "unembed.hook_out": _LOGITS,
    "hook_logits": _LOGITS,
}
"""Every point that a decoder may have, in execution order."""


def sites(arch: "Transformer") -> dict[str, Site]:
    """Every point of the model, in execution order."""
    sizes = {
        "d_model": arch.d_model,
        "d_embed": arch.d_embed or 0,
        "head": arch.n_heads,
        "kv_head": arch.n_kv_heads,
        "d_head": arch.d_head,
        "d_mlp": arch.d_mlp,
        "expert": arch.experts.n_experts if arch.experts else 0,
        "vocab": arch.d_vocab,
    }
    has = {point: axes for point, axes in _AXES.items() if not _lacks(arch, point)}
    if arch.d_embed is not None:
        has["unembed.hook_in"] = ("batch", "pos", "d_embed")
    return sites_of(has, sizes, arch.n_layers, _some(arch) if len(set(arch.kinds)) > 1 else None)


def _some(arch: "Transformer") -> dict[str, tuple[int, ...]]:
    """The layers of points that not every layer has."""
    mixed, dense = (tuple(i for i, k in enumerate(arch.kinds) if k == kind) for kind in ("experts", "mlp"))
    routing = dict.fromkeys(("blocks.*.mlp.hook_router_logits", "blocks.*.mlp.hook_expert_weights"), mixed)
    names = ("pre", "pre_linear", "post")
    return {
        **routing,
        **dict.fromkeys((f"blocks.*.mlp.hook_{name}" for name in names), dense),
    }


def _lacks(arch: "Transformer", point: str) -> bool:
    name = point.removeprefix("blocks.*.")
    second = arch.parallel and arch.norms.shared
    absent = {
        "hook_pos_embed": arch.positions.learned is None,
        "attn.hook_rot_q": not arch.positions.rotary,
        "attn.hook_rot_k": not arch.positions.rotary,
        "hook_resid_mid": arch.parallel,
        "ln1.": arch.norms.where == "post",
        "ln2.": arch.norms.where == "post" or second,
        "ln1_post.": not arch.norms.written,
        "ln2_post.": not arch.norms.written,
        "ln_final.": arch.norms.in_stream,
        "hook_final_norm": arch.norms.in_stream,
        "mlp.hook_router_logits": arch.experts is None,
        "mlp.hook_expert_weights": arch.experts is None,
        "mlp.hook_pre": "mlp" not in arch.kinds,
        "mlp.hook_pre_linear": "mlp" not in arch.kinds or not arch.mlp.gated,
        "mlp.hook_post": "mlp" not in arch.kinds,
    }
    return any(gone and (name == n or (n.endswith(".") and name.startswith(n))) for n, gone in absent.items())
