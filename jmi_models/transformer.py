"""The generic decoder: a Transformer value whose fields are the axes along which families differ.

Axis letters: b batch, s sequence, d model width, h query heads, g key/value heads, k head width,
m MLP width, v vocabulary. Parameter names are TransformerLens's; weights are stored input axis
first (``W_Q[d, h, k]``), the order in which a matrix product reads them without a copy.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jmi.architecture import Tap
from jmi.sites import AXES, Site, sites_of
from jmi_models import ops
from jmi_models.params import Param
from jmi_models.rope import Rope, rotate


@struct.dataclass
class Context:
    """What every layer reads: rotary tables ``[b, s, k/2]`` and the mask of real tokens."""

    cos: jax.Array
    sin: jax.Array
    key_mask: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Transformer:
    """Architecture of a decoder-only transformer.

    Attributes:
      family: name of the family it was read as.
      n_layers, d_model, n_heads, n_kv_heads, d_head, d_mlp, d_vocab, n_ctx: sizes.
      act_fn: Hugging Face name of the MLP activation.
      eps: of the norms.
      rope: rotary embedding.
      qkv_bias, out_bias, mlp_bias: which projections have biases.
      tied: whether the unembedding is the transposed embedding.
    """

    family: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    act_fn: str
    eps: float
    rope: Rope
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False

    def sites(self) -> dict[str, Site]:
        """Every point of the model, in execution order."""
        points = [p for p in AXES if p != "hook_pos_embed"]
        sizes = {
            "d_model": self.d_model,
            "head": self.n_heads,
            "kv_head": self.n_kv_heads,
            "d_head": self.d_head,
            "d_mlp": self.d_mlp,
            "vocab": self.d_vocab,
        }
        return sites_of(points, sizes, self.n_layers)

    def param_tree(self) -> dict[str, Any]:
        """Abstract parameters: `Param` leaves in the structure of the real ones."""
        tree: dict[str, Any] = {
            "embed": {"W_E": self._param("d_vocab d_model")},
            "blocks": {
                "ln1": {"w": self._param("n_layers d_model", "ones")},
                "attn": self._attention_params(),
                "ln2": {"w": self._param("n_layers d_model", "ones")},
                "mlp": self._mlp_params(),
            },
            "ln_final": {"w": self._param("d_model", "ones")},
        }
        if not self.tied:
            tree["unembed"] = {"W_U": self._param("d_model d_vocab")}
        return tree

    def _attention_params(self) -> dict[str, Param]:
        tree = {
            "W_Q": self._param("n_layers d_model n_heads d_head"),
            "W_K": self._param("n_layers d_model n_kv_heads d_head"),
            "W_V": self._param("n_layers d_model n_kv_heads d_head"),
            "W_O": self._param("n_layers n_heads d_head d_model", self._residual_std),
        }
        if self.qkv_bias:
            tree["b_Q"] = self._param("n_layers n_heads d_head", "zeros")
            tree["b_K"] = self._param("n_layers n_kv_heads d_head", "zeros")
            tree["b_V"] = self._param("n_layers n_kv_heads d_head", "zeros")
        if self.out_bias:
            tree["b_O"] = self._param("n_layers d_model", "zeros")
        return tree

    def _mlp_params(self) -> dict[str, Param]:
        tree = {
            "W_gate": self._param("n_layers d_model d_mlp"),
            "W_in": self._param("n_layers d_model d_mlp"),
            "W_out": self._param("n_layers d_mlp d_model", self._residual_std),
        }
        if self.mlp_bias:
            tree["b_gate"] = self._param("n_layers d_mlp", "zeros")
            tree["b_in"] = self._param("n_layers d_mlp", "zeros")
            tree["b_out"] = self._param("n_layers d_model", "zeros")
        return tree

    @property
    def _residual_std(self) -> float:
        # GPT-2's rule: the residual stream keeps its scale however many layers write to it.
        return 0.02 / (2 * self.n_layers) ** 0.5

    def _param(self, axes: str, init: float | str = 0.02) -> Param:
        names = tuple(axes.split())
        return Param(tuple(getattr(self, name) for name in names), names, init)

    def context(
        self, params: Any, tokens: jax.Array, mask: jax.Array | None, positions: jax.Array | None
    ) -> Context:
        """Rotary tables and masks; real tokens are counted from 0 unless ``positions`` are given."""
        if positions is None and mask is not None:
            positions = jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), -1) - 1, 0)
        elif positions is None:
            positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        cos, sin = self.rope.tables(jnp.asarray(positions), params["embed"]["W_E"].dtype)
        return Context(cos, sin, mask)

    def embed(self, params: Any, tokens: jax.Array, context: Context, tap: Tap) -> jax.Array:
        """Tokens ``[b, s]`` to the residual stream ``[b, s, d]``."""
        del context
        return tap("hook_embed", jnp.take(params["embed"]["W_E"], tokens, axis=0))

    def block(self, layer_params: Any, carry: jax.Array, context: Context, layer: Any, tap: Tap) -> jax.Array:
        """One layer on the residual stream ``[b, s, d]``."""
        del layer
        x = tap("hook_resid_pre", carry)
        normed = tap("attn.hook_in", self._norm(layer_params["ln1"], x, tap, "ln1."))
        x = x + tap("hook_attn_out", self._attention(layer_params["attn"], normed, context, tap))
        x = tap("hook_resid_mid", x)
        normed = tap("mlp.hook_in", self._norm(layer_params["ln2"], x, tap, "ln2."))
        x = x + tap("hook_mlp_out", self._mlp(layer_params["mlp"], normed, tap))
        return tap("hook_resid_post", x)

    def readout(self, params: Any, carry: jax.Array, tap: Tap) -> jax.Array:
        """Final norm and unembedding: logits ``[b, s, v]``."""
        x = tap("hook_final_norm", self._norm(params["ln_final"], carry, tap, "ln_final."))
        if self.tied:
            logits = jnp.einsum("bsd,vd->bsv", x, params["embed"]["W_E"])
        else:
            logits = jnp.einsum("bsd,dv->bsv", x, params["unembed"]["W_U"])
        return tap("hook_logits", logits)

    def _norm(self, p: Any, x: jax.Array, tap: Tap, name: str) -> jax.Array:
        scale = tap(f"{name}hook_scale", ops.rms(x, self.eps))
        normed = (x.astype(scale.dtype) / scale).astype(x.dtype)
        if name != "ln_final.":
            normed = tap(f"{name}hook_normalized", normed)
        return normed * p["w"][None, None]

    def _attention(self, p: Any, x: jax.Array, context: Context, tap: Tap) -> jax.Array:
        q, k, v = (self._project(p, x, letter) for letter in "QKV")
        q, k, v = tap("attn.hook_q", q), tap("attn.hook_k", k), tap("attn.hook_v", v)
        q = tap("attn.hook_rot_q", rotate(q, context.cos, context.sin))
        k = tap("attn.hook_rot_k", rotate(k, context.cos, context.sin))
        scores = ops.attention_scores(q, k, self.d_head**-0.5)
        scores = jnp.where(ops.causal_mask(x.shape[1], context.key_mask), scores, -jnp.inf)
        pattern = tap("attn.hook_pattern", ops.softmax(tap("attn.hook_attn_scores", scores)))
        z = tap("attn.hook_z", ops.attend(pattern, v))
        if tap.wants("attn.hook_result"):
            out = tap("attn.hook_result", jnp.einsum("bshk,hkd->bshd", z, p["W_O"])).sum(2)
        else:
            out = jnp.einsum("bshk,hkd->bsd", z, p["W_O"])
        return tap("attn.hook_out", _add_bias(out, p, "b_O"))

    def _project(self, p: Any, x: jax.Array, letter: str) -> jax.Array:
        return _add_bias(jnp.einsum("bsd,dhk->bshk", x, p[f"W_{letter}"]), p, f"b_{letter}")

    def _mlp(self, p: Any, x: jax.Array, tap: Tap) -> jax.Array:
        gate = tap("mlp.hook_pre", _add_bias(jnp.einsum("bsd,dm->bsm", x, p["W_gate"]), p, "b_gate"))
        linear = tap("mlp.hook_pre_linear", _add_bias(jnp.einsum("bsd,dm->bsm", x, p["W_in"]), p, "b_in"))
        post = tap("mlp.hook_post", ops.ACTIVATIONS[self.act_fn](gate) * linear)
        return tap("mlp.hook_out", _add_bias(jnp.einsum("bsm,md->bsd", post, p["W_out"]), p, "b_out"))


def _add_bias(x: jax.Array, p: Any, name: str) -> jax.Array:
    return x + p[name][None, None] if name in p else x
