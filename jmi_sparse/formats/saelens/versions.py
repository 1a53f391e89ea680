"""Which fields SAELens's ``cfg.json`` has had: today's, those that only training reads, those before 6."""

from collections.abc import Mapping
from typing import Any

_TRAINING_FIELDS = (
    "decoder_init_norm l1_coefficient lp_norm l1_warm_up_steps jumprelu_init_threshold "
    "jumprelu_bandwidth jumprelu_sparsity_loss_mode l0_coefficient l0_warm_up_steps "
    "pre_act_loss_coefficient jumprelu_tanh_scale jumprelu_ste_to_input target_l0 "
    "use_sparse_activations aux_loss_coefficient topk_threshold_lr matryoshka_widths "
    "use_matryoshka_aux_loss"
)
TRAINING = frozenset(_TRAINING_FIELDS.split())
"""Fields that only training reads."""

_READ_FIELDS = (
    "d_in d_sae d_out dtype device apply_b_dec_to_input normalize_activations reshape_activations "
    "metadata architecture k rescale_acts_by_decoder_norm sae_lens_version sae_lens_training_version "
    "residual_threshold max_iterations stop_on_duplicate_support n_heads n_attn_layers bottleneck_factor "
    "sae_diff_type kval_topk tied_weights activation_normalization_factor"
)
READ = frozenset(_READ_FIELDS.split())
"""Fields that say what is computed, and where."""

_ABOUT_FIELDS = (
    "model_name hook_name model_class_name hook_head_index model_from_pretrained_kwargs prepend_bos "
    "exclude_special_tokens neuronpedia_id context_size seqpos_slice dataset_path "
    "sae_lens_training_version hook_name_out hook_head_index_out hf_hook_name hf_hook_name_out"
)
_ABOUT = frozenset(_ABOUT_FIELDS.split())
"""Fields of versions before 6 that say where a dictionary belongs; SAELens keeps the same ones."""


def is_old(given: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Whether a version before 6 wrote it: these do not say which."""
    version = given.get("sae_lens_version") or metadata.get("sae_lens_version")
    major = str(version).split(".")[0]
    return not version or (major.isdigit() and int(major) < 6)


def renewed(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of a version before 6 by their later names, with the defaults that it had; and its metadata."""
    names = {
        "hook_point": "hook_name",
        "hook_point_head_index": "hook_head_index",
        "activation_fn_str": "activation_fn",
    }
    new = {names.get(key, key): value for key, value in given.items()}
    new.setdefault("architecture", "standard")
    new.setdefault("reshape_activations", "hook_z" if "hook_z" in str(new.get("hook_name")) else "none")
    options = new.get("activation_fn_kwargs")
    if new.get("activation_fn") == "topk" and isinstance(options, dict) and "k" in options:
        new |= {"architecture": "topk", "k": options["k"]}
    normalise = new.get("normalize_activations")
    if normalise is None or isinstance(normalise, bool):
        new["normalize_activations"] = "expected_average_only_in" if normalise else "none"
    inner = given.get("metadata")
    about = {key: value for key, value in new.items() if key in _ABOUT}
    return new, about | (inner if isinstance(inner, dict) else {})
