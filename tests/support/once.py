"""What each site of a decoder is, computed in float64 from the sites right before it.

In bfloat16 a site is that, rounded once.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi_models.decoder import ops

Pairs = dict[str, tuple[np.ndarray, np.ndarray]]
"""Step -> what the model has there, and what follows from the sites before."""


def steps(arch: Any, params: Any, x: dict[str, np.ndarray]) -> Pairs:
    """Every step that is one site further.

    Args:
      params: stacked over layers, float64.
      x: site (without ``blocks.*.``) -> float64, those inside blocks stacked over layers.
    """
    p = params["blocks"]
    return {
        **_norms(arch, p, x),
        **_final_norm(arch, params, x),
        **_attention(arch, p["attn"], x),
        **_stream(arch, x),
        **_mlp(arch, p["mlp"], x),
        **_logits(arch, params, x),
    }


def _norms(arch: Any, p: Any, x: dict[str, np.ndarray]) -> Pairs:
    read = {"ln1": ("hook_resid_pre", "attn.hook_in"), "ln2": ("hook_mlp_in", "mlp.hook_in")}
    written = {"ln1_post": ("attn.hook_out", "hook_attn_out"), "ln2_post": ("mlp.hook_out", "hook_mlp_out")}
    places = written if arch.norms.in_stream else read | written
    return {
        name: (x[after], _normalised(arch.norms.norm, p.get(name), x[before]))
        for name, (before, after) in places.items()
        if f"{name}.hook_scale" in x
    }


def _final_norm(arch: Any, params: Any, x: dict[str, np.ndarray]) -> Pairs:
    if arch.norms.in_stream:
        return {}
    p = {name: value[None] for name, value in params.get("ln_final", {}).items()}
    return {
        "ln_final": (x["hook_final_norm"][None], _normalised(arch.norms.norm, p, x["hook_resid_post"][-1:]))
    }


def _normalised(norm: Any, p: Any, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True) if norm.kind == "layer" else x
    value = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    if norm.gain != "none":
        gain = p["w"][:, None, None]
        value = value * (1 + gain if norm.gain == "1 + w" else gain)
    return value + _bias(p, "b") if norm.bias else value


def _attention(arch: Any, p: Any, x: dict[str, np.ndarray]) -> Pairs:
    groups = arch.n_heads // arch.n_kv_heads
    pairs = {
        "pattern": (x["attn.hook_pattern"], _softmax(x["attn.hook_attn_scores"], p.get("sinks"))),
        "z": (
            x["attn.hook_z"],
            np.einsum("lbhqt,lbthk->lbqhk", x["attn.hook_pattern"], x["attn.hook_v"].repeat(groups, 3)),
        ),
        "result": (x["attn.hook_result"], np.einsum("lbshk,lhkd->lbshd", x["attn.hook_z"], p["W_O"])),
        "attn": (x["attn.hook_out"], x["attn.hook_result"].sum(3) + _bias(p, "b_O")),
    }
    if arch.attn.qk_norm is None and arch.attn.clip_qkv is None:
        for name in "QKV":
            value = np.einsum("lbsd,ldhk->lbshk", x["attn.hook_in"], p[f"W_{name}"]) + _bias(p, f"b_{name}")
            pairs[name] = (x[f"attn.hook_{name.lower()}"], value)
    if arch.positions.alibi is None:
        q, k = (x[f"attn.hook_{'rot_' if arch.positions.rotary else ''}{name}"] for name in "qk")
        scores = arch.attn.scale * np.einsum("lbqhk,lbthk->lbhqt", q, k.repeat(groups, 3))
        if arch.attn.softcap is not None:
            scores = arch.attn.softcap * np.tanh(scores / arch.attn.softcap)
        seen = np.isfinite(x["attn.hook_attn_scores"])
        pairs["scores"] = (x["attn.hook_attn_scores"][seen], scores[seen])
    return pairs


def _stream(arch: Any, x: dict[str, np.ndarray]) -> Pairs:
    pairs = {}
    if not arch.norms.written:
        for name in ("attn", "mlp"):
            pairs[f"{name} added"] = (x[f"hook_{name}_out"], arch.residual_scale * x[f"{name}.hook_out"])
    middle = x["hook_resid_pre"] + x["hook_attn_out"]
    if not arch.parallel:
        pairs["middle"] = (x["hook_resid_mid"], middle)
        middle = x["hook_resid_mid"]
    if not arch.norms.in_stream:
        pairs["post"] = (x["hook_resid_post"], middle + x["hook_mlp_out"])
    return pairs


def _mlp(arch: Any, p: Any, x: dict[str, np.ndarray]) -> Pairs:
    if arch.experts is not None:
        router = np.einsum("lbsd,lde->lbse", x["mlp.hook_in"], p["W_router"]) + _bias(p, "b_router")
        return {"router": (x["mlp.hook_router_logits"], router)}
    with jax.enable_x64(True):
        post = np.asarray(ops.ACTIVATIONS[arch.mlp.act_fn](jnp.asarray(x["mlp.hook_pre"])))
    branches = {"hook_pre": "gate" if arch.mlp.gated else "in"}
    if arch.mlp.gated:
        branches["hook_pre_linear"], post = "in", post * x["mlp.hook_pre_linear"]
    pairs = {
        "mlp post": (x["mlp.hook_post"], post),
        "mlp": (
            x["mlp.hook_out"],
            np.einsum("lbsm,lmd->lbsd", x["mlp.hook_post"], p["W_out"]) + _bias(p, "b_out"),
        ),
    }
    for site, name in branches.items():
        value = np.einsum("lbsd,ldm->lbsm", x["mlp.hook_in"], p[f"W_{name}"]) + _bias(p, f"b_{name}")
        pairs[f"mlp {name}"] = (x[f"mlp.{site}"], value)
    return pairs


def _logits(arch: Any, params: Any, x: dict[str, np.ndarray]) -> Pairs:
    head = params.get("unembed", {})
    weight = params["embed"]["W_E"].T if arch.tied else head["W_U"]
    final = x.get("hook_final_norm", x["hook_resid_post"][-1])
    logits = x["unembed.hook_out"] * arch.logit_scale
    if arch.logit_softcap is not None:
        logits = arch.logit_softcap * np.tanh(logits / arch.logit_softcap)
    return {
        "read": (x["unembed.hook_in"], final if arch.d_embed is None else final @ head["W_out"]),
        "unembed": (x["unembed.hook_out"], x["unembed.hook_in"] @ weight + head.get("b_U", 0)),
        "logits": (x["hook_logits"], logits),
    }


def _softmax(scores: np.ndarray, sinks: np.ndarray | None) -> np.ndarray:
    weights = np.exp(scores)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks)[:, None, :, None, None]
    return weights / total


def _bias(p: Any, name: str) -> Any:
    return p[name][:, None, None] if name in p else 0
