"""Where Hugging Face shows each site of each family, as data; no torch.

A site whose modules a model lacks in every layer (the middle of a parallel block) is left out; one that
only some layers have (the router among dense layers) is NaN in the others.
"""

from collections.abc import Mapping

from tests.oracles.grid import FAMILIES
from tests.oracles.taps import (
    Difference,
    Recording,
    Repair,
    Table,
    When,
    argument,
    dense_weights,
    enters,
    first_half,
    heads_first,
    heads_first_one_per_group,
    leaves,
    logits,
    one_per_group,
    only_masked,
    result,
    second_half,
)

UNEXPOSED: Mapping[str, frozenset[str]] = dict.fromkeys(
    FAMILIES,
    frozenset(
        {
            "blocks.*.ln1.hook_scale",
            "blocks.*.ln1.hook_normalized",
            "blocks.*.ln2.hook_scale",
            "blocks.*.ln2.hook_normalized",
            "ln_final.hook_scale",
            "ln_final.hook_normalized",
            "blocks.*.attn.hook_attn_scores",
            "blocks.*.attn.hook_result",
        }
    ),
)
"""Family -> sites that Hugging Face computes inside a function, where no hook reaches."""

_LOGITS: Table = {
    "unembed.hook_in": enters("lm_head"),
    # Before the scale of Cohere and Granite, and the cap of Gemma 2.
    "unembed.hook_out": leaves("lm_head"),
    "hook_logits": leaves("", None, logits),
}

_SCORED: Table = {
    "blocks.*.attn.hook_q": argument("eager_attention_forward", 1, heads_first),
    "blocks.*.attn.hook_k": argument("eager_attention_forward", 2, heads_first),
    "blocks.*.attn.hook_v": argument("eager_attention_forward", 3, heads_first),
}
"""Without rotary, queries and keys are scored as they are."""

_ROTATED: Table = {
    "blocks.*.attn.hook_q": argument("apply_rotary_pos_emb", 0, heads_first),
    "blocks.*.attn.hook_k": argument("apply_rotary_pos_emb", 1, heads_first),
    "blocks.*.attn.hook_v": argument("eager_attention_forward", 3, heads_first),
    "blocks.*.attn.hook_rot_q": argument("eager_attention_forward", 1, heads_first),
    "blocks.*.attn.hook_rot_k": argument("eager_attention_forward", 2, heads_first),
}


def _projected(layer: str) -> Table:
    """Queries and keys as the projections leave them: not every layer has rotary, or not every dimension."""
    attention = f"{layer}.self_attn"
    return {
        **_ROTATED,
        "blocks.*.attn.hook_q": leaves(f"{attention}.q_proj"),
        "blocks.*.attn.hook_k": leaves(f"{attention}.k_proj"),
    }


def _attention(layer: str, attention: str, projection: str) -> Table:
    """The frame of an attention that returns (output, pattern) and whose ``projection`` reads the heads."""
    return {
        "blocks.*.hook_resid_pre": enters(layer),
        "blocks.*.attn.hook_in": enters(f"{layer}.{attention}"),
        "blocks.*.attn.hook_pattern": leaves(f"{layer}.{attention}", 1),
        "blocks.*.attn.hook_z": enters(f"{layer}.{attention}.{projection}"),
        "blocks.*.attn.hook_out": leaves(f"{layer}.{attention}.{projection}"),
        "blocks.*.hook_attn_out": leaves(f"{layer}.{attention}.{projection}"),
        "blocks.*.hook_resid_post": leaves(layer),
    }


def _mlp(layer: str, up: str, down: str) -> Table:
    """An MLP of one branch: matrices ``up`` and ``down``."""
    return {
        "blocks.*.mlp.hook_in": enters(f"{layer}.{up}"),
        "blocks.*.mlp.hook_pre": leaves(f"{layer}.{up}"),
        "blocks.*.mlp.hook_post": enters(f"{layer}.{down}"),
        "blocks.*.mlp.hook_out": leaves(f"{layer}.{down}"),
        "blocks.*.hook_mlp_out": leaves(f"{layer}.{down}"),
    }


_L = "model.layers.*"
_H = "transformer.h.*"

_LLAMA: Table = {
    "hook_embed": leaves("model.embed_tokens"),
    **_ROTATED,
    **_attention(_L, "self_attn", "o_proj"),
    "blocks.*.hook_resid_mid": enters(f"{_L}.post_attention_layernorm"),
    **_mlp(_L, "mlp.gate_proj", "mlp.down_proj"),
    "blocks.*.mlp.hook_pre_linear": leaves(f"{_L}.mlp.up_proj"),
    "hook_final_norm": leaves("model.norm"),
    **_LOGITS,
}

_GEMMA_WITH_POST_NORMS: Table = {
    **_LLAMA,
    "blocks.*.hook_attn_out": leaves(f"{_L}.post_attention_layernorm"),
    "blocks.*.hook_resid_mid": enters(f"{_L}.pre_feedforward_layernorm"),
    "blocks.*.hook_mlp_out": leaves(f"{_L}.post_feedforward_layernorm"),
}

_NO_MIDDLE: Table = {"blocks.*.hook_resid_mid": None}

_ONE_BRANCH: Table = {"blocks.*.mlp.hook_pre_linear": None}

_PHI3: Table = {
    **_LLAMA,
    **_mlp(_L, "mlp.gate_up_proj", "mlp.down_proj"),
    "blocks.*.mlp.hook_pre": leaves(f"{_L}.mlp.gate_up_proj", part=first_half),
    "blocks.*.mlp.hook_pre_linear": leaves(f"{_L}.mlp.gate_up_proj", part=second_half),
}

_GPT2: Table = {
    "hook_embed": leaves("transformer.wte"),
    "hook_pos_embed": leaves("transformer.wpe"),
    **_SCORED,
    **_attention(_H, "attn", "c_proj"),
    "blocks.*.hook_resid_mid": enters(f"{_H}.ln_2"),
    **_mlp(_H, "mlp.c_fc", "mlp.c_proj"),
    "hook_final_norm": leaves("transformer.ln_f"),
    **_LOGITS,
}
_GPT2_UPCAST: Table = {
    "blocks.*.attn.hook_q": argument(f"{_H}.attn._upcast_and_reordered_attn", 0, heads_first),
    "blocks.*.attn.hook_k": argument(f"{_H}.attn._upcast_and_reordered_attn", 1, heads_first),
    "blocks.*.attn.hook_v": argument(f"{_H}.attn._upcast_and_reordered_attn", 2, heads_first),
}

_N = "gpt_neox.layers.*"
_GPT_NEOX: Table = {
    "hook_embed": leaves("gpt_neox.embed_in"),
    **_ROTATED,
    **_attention(_N, "attention", "dense"),
    "blocks.*.hook_resid_mid": enters(f"{_N}.post_attention_layernorm"),
    **_mlp(_N, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "hook_final_norm": leaves("gpt_neox.final_layer_norm"),
    **_LOGITS,
}

_GPTJ: Table = {
    "hook_embed": leaves("transformer.wte"),
    **_attention(_H, "attn", "out_proj"),
    "blocks.*.attn.hook_q": leaves(f"{_H}.attn.q_proj"),
    "blocks.*.attn.hook_k": leaves(f"{_H}.attn.k_proj"),
    "blocks.*.attn.hook_v": leaves(f"{_H}.attn.v_proj"),
    "blocks.*.attn.hook_rot_q": argument("eager_attention_forward", 1, heads_first),
    "blocks.*.attn.hook_rot_k": argument("eager_attention_forward", 2, heads_first),
    **_mlp(_H, "mlp.fc_in", "mlp.fc_out"),
    "hook_final_norm": leaves("transformer.ln_f"),
    **_LOGITS,
}

_D = "model.decoder.layers.*"
_OPT: Table = {
    # With word_embed_proj_dim the last tap that exists: the embedding projected to the model's width.
    "hook_embed": (leaves("model.decoder.embed_tokens"), leaves("model.decoder.project_in")),
    "hook_pos_embed": leaves("model.decoder.embed_positions"),
    **_attention(_D, "self_attn", "out_proj"),
    # Not what is scored: Hugging Face multiplies queries by k ** -0.5 beforehand.
    "blocks.*.attn.hook_q": leaves(f"{_D}.self_attn.q_proj"),
    "blocks.*.attn.hook_k": leaves(f"{_D}.self_attn.k_proj"),
    "blocks.*.attn.hook_v": leaves(f"{_D}.self_attn.v_proj"),
    "blocks.*.hook_resid_mid": enters(f"{_D}.final_layer_norm"),
    **_mlp(_D, "fc1", "fc2"),
    "hook_final_norm": leaves("model.decoder.final_layer_norm"),
    **_LOGITS,
}
# x -> norm(x + attention(x)) -> norm(that + mlp(that)): the sum before the first norm is the middle.
_OPT_POST_NORM: Table = {
    "blocks.*.hook_resid_mid": enters(f"{_D}.self_attn_layer_norm"),
    "hook_final_norm": None,
}

_PHI: Table = {
    **_LLAMA,
    **_projected(_L),
    **_attention(_L, "self_attn", "dense"),
    **_mlp(_L, "mlp.fc1", "mlp.fc2"),
    **_ONE_BRANCH,
    **_NO_MIDDLE,
    "hook_final_norm": leaves("model.final_layernorm"),
}
_NORMALISED_HEADS: Table = {
    "blocks.*.attn.hook_q": leaves(f"{_L}.self_attn.q_layernorm", part=heads_first),
    "blocks.*.attn.hook_k": leaves(f"{_L}.self_attn.k_layernorm", part=heads_first),
}

_SPLIT = f"{_H}.self_attention._split_heads"
_FALCON: Table = {
    "hook_embed": leaves("transformer.word_embeddings"),
    **_attention(_H, "self_attention", "dense"),
    "blocks.*.attn.hook_q": result(_SPLIT, 0),
    "blocks.*.attn.hook_k": result(_SPLIT, 1, one_per_group),
    "blocks.*.attn.hook_v": result(_SPLIT, 2, one_per_group),
    "blocks.*.attn.hook_rot_q": result("apply_rotary_pos_emb", 0, heads_first),
    "blocks.*.attn.hook_rot_k": result("apply_rotary_pos_emb", 1, heads_first_one_per_group),
    "blocks.*.hook_resid_mid": enters(f"{_H}.post_attention_layernorm"),
    **_mlp(_H, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "hook_final_norm": leaves("transformer.ln_f"),
    **_LOGITS,
}
_NO_ROTARY: Table = {"blocks.*.attn.hook_rot_q": None, "blocks.*.attn.hook_rot_k": None}

# Attention and MLP of Bloom return the sum with the residual; their last matrices do not.
_RESHAPE = f"{_H}.self_attention._reshape"
_BLOOM: Table = {
    **_FALCON,
    **_NO_ROTARY,
    "hook_embed": leaves("transformer.word_embeddings_layernorm"),
    "blocks.*.attn.hook_q": result(_RESHAPE, 0, heads_first),
    "blocks.*.attn.hook_k": result(_RESHAPE, 1, heads_first),
    "blocks.*.attn.hook_v": result(_RESHAPE, 2, heads_first),
}

_GRANITE: Table = {
    **_LLAMA,
    "hook_embed": enters("model.layers.0"),
    "blocks.*.hook_attn_out": Difference("blocks.*.hook_resid_mid", "blocks.*.hook_resid_pre"),
    "blocks.*.hook_mlp_out": Difference("blocks.*.hook_resid_post", "blocks.*.hook_resid_mid"),
}


def _mixture(router: str) -> Table:
    """A mixture instead of the MLP; dense layers among them keep the sites inside an MLP."""
    return {
        **_LLAMA,
        "blocks.*.mlp.hook_in": enters(f"{_L}.mlp"),
        "blocks.*.mlp.hook_router_logits": leaves(f"{_L}.mlp.{router}"),
        "blocks.*.mlp.hook_expert_weights": enters(f"{_L}.mlp.experts", None, dense_weights),
        "blocks.*.mlp.hook_out": leaves(f"{_L}.mlp"),
        "blocks.*.hook_mlp_out": leaves(f"{_L}.mlp"),
    }


RECORDINGS: Mapping[str, Recording] = {
    "llama": Recording(_LLAMA),
    "mistral": Recording(_LLAMA),
    "qwen2": Recording(_LLAMA),
    "qwen3": Recording(_LLAMA),
    "gemma": Recording(_LLAMA),
    "gemma2": Recording(_GEMMA_WITH_POST_NORMS),
    "gemma3_text": Recording(_GEMMA_WITH_POST_NORMS),
    "phi3": Recording(_PHI3),
    "starcoder2": Recording({**_LLAMA, **_mlp(_L, "mlp.c_fc", "mlp.c_proj"), **_ONE_BRANCH}),
    "gpt2": Recording(_GPT2, (When("reorder_and_upcast_attn", True, _GPT2_UPCAST),)),
    "gpt_neox": Recording(_GPT_NEOX, (When("use_parallel_residual", True, _NO_MIDDLE),)),
    "gptj": Recording(_GPTJ),
    "opt": Recording(_OPT, (When("do_layer_norm_before", False, _OPT_POST_NORM),)),
    "olmo": Recording(_LLAMA),
    "olmo2": Recording(
        {
            **_LLAMA,
            "blocks.*.hook_attn_out": leaves(f"{_L}.post_attention_layernorm"),
            "blocks.*.hook_resid_mid": enters(f"{_L}.mlp"),
            "blocks.*.hook_mlp_out": leaves(f"{_L}.post_feedforward_layernorm"),
        }
    ),
    "phi": Recording(_PHI, (When("qk_layernorm", True, _NORMALISED_HEADS),)),
    "stablelm": Recording(
        {**_LLAMA, **_projected(_L)},
        (When("use_parallel_residual", True, _NO_MIDDLE), When("qk_layernorm", True, _NORMALISED_HEADS)),
    ),
    "falcon": Recording(
        _FALCON,
        (When("parallel_attn", True, _NO_MIDDLE), When("alibi", True, _NO_ROTARY)),
        # Eager attention of transformers 5.24 adds alibi twice: to the scores, and within the mask. The
        # original model and attn_implementation="sdpa" add it once.
        (Repair(f"{_H}.self_attention", "attention_mask", only_masked),),
    ),
    "cohere": Recording({**_LLAMA, **_NO_MIDDLE}),
    "cohere2": Recording({**_LLAMA, **_projected(_L), **_NO_MIDDLE}),
    "granite": Recording(_GRANITE),
    "smollm3": Recording({**_LLAMA, **_projected(_L)}),
    "bloom": Recording(_BLOOM),
    "mixtral": Recording(_mixture("gate")),
    "qwen2_moe": Recording(_mixture("gate")),
    "qwen3_moe": Recording(_mixture("gate")),
    "olmoe": Recording(_mixture("gate")),
    "gpt_oss": Recording(_mixture("router")),
}
"""Family -> where its sites are seen."""
