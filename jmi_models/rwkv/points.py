"""The points of an RWKV model and the axes of the tensor at each."""

from collections.abc import Mapping

_RESID = ("batch", "pos", "d_model")
_SCALE = ("batch", "pos", "one")
_Q = ("batch", "pos", "head", "d_head")
_ATTENTION = ("batch", "head", "query", "key")
_MLP = ("batch", "pos", "d_mlp")
_LOGITS = ("batch", "pos", "vocab")
_LAST = ("batch", "d_model")
_STATE = ("batch", "head", "d_key", "d_value")

AXES: Mapping[str, tuple[str, ...]] = {
    "hook_embed": _RESID,
    "blocks.*.hook_resid_pre": _RESID,
    "blocks.*.ln1.hook_scale": _SCALE,
    "blocks.*.ln1.hook_normalized": _RESID,
    "blocks.*.rwkv.hook_in": _RESID,
    "blocks.*.rwkv.hook_shift_in": _LAST,
    "blocks.*.rwkv.hook_shift": _LAST,
    "blocks.*.rwkv.hook_r": _Q,
    "blocks.*.rwkv.hook_w": _Q,
    "blocks.*.rwkv.hook_v": _Q,
    "blocks.*.rwkv.hook_a": _Q,
    "blocks.*.rwkv.hook_g": _Q,
    "blocks.*.rwkv.hook_kk": _Q,
    "blocks.*.rwkv.hook_k": _Q,
    "blocks.*.rwkv.hook_decay": _Q,
    "blocks.*.rwkv.hook_write": ("batch", "pos", "head"),
    "blocks.*.rwkv.hook_state_in": _STATE,
    "blocks.*.rwkv.hook_states": ("batch", "pos", "head", "d_key", "d_value"),
    "blocks.*.rwkv.hook_state": _STATE,
    "blocks.*.rwkv.hook_y": _Q,
    "blocks.*.rwkv.hook_effective_scores": _ATTENTION,
    "blocks.*.rwkv.hook_effective_attn": _ATTENTION,
    "blocks.*.rwkv.hook_z": _Q,
    "blocks.*.hook_attn_out": _RESID,
    "blocks.*.hook_resid_mid": _RESID,
    "blocks.*.ln2.hook_scale": _SCALE,
    "blocks.*.ln2.hook_normalized": _RESID,
    "blocks.*.mlp.hook_in": _RESID,
    "blocks.*.mlp.hook_shift_in": _LAST,
    "blocks.*.mlp.hook_shift": _LAST,
    "blocks.*.mlp.hook_pre": _MLP,
    "blocks.*.mlp.hook_post": _MLP,
    "blocks.*.mlp.hook_gate": _RESID,
    "blocks.*.mlp.hook_out": _RESID,
    "blocks.*.hook_mlp_out": _RESID,
    "blocks.*.hook_resid_post": _RESID,
    "ln_final.hook_scale": _SCALE,
    "ln_final.hook_normalized": _RESID,
    "hook_final_norm": _RESID,
    "unembed.hook_in": _RESID,
    "unembed.hook_out": _LOGITS,
    "hook_logits": _LOGITS,
}
"""Every point of one of the versions, in execution order."""
