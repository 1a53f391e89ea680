"""Which points a decoder has, and in which layers."""

from typing import TYPE_CHECKING

from jmi.model.axes import TRANSFORMER_AXES
from jmi.model.sites import Site, sites_of

if TYPE_CHECKING:
    from jmi_models.decoder.transformer import Transformer


def sites(arch: "Transformer") -> dict[str, Site]:
    """Every point of the model, in execution order."""
    sizes = {
        "d_model": arch.d_model,
        "head": arch.n_heads,
        "kv_head": arch.n_kv_heads,
        "d_head": arch.d_head,
        "d_mlp": arch.d_mlp,
        "expert": arch.experts.n_experts if arch.experts else 0,
        "vocab": arch.d_vocab,
    }
    has = [point for point in TRANSFORMER_AXES if not _lacks(arch, point)]
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
