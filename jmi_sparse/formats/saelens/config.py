"""The ``cfg.json`` of SAELens: what a folder says of its dictionary, of every version."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.disk import words
from jmi_sparse.formats.reading.fields import Fields
from jmi_sparse.formats.saelens.versions import READ, TRAINING, is_old, renewed

KINDS = {
    "standard": "relu",
    "jumprelu": "jump",
    "gated": "gated",
    "topk": "topk",
    "abstopk": "topk",
    "batchtopk": "batch",
    "matryoshka_batchtopk": "batch",
    "matching_pursuit": "pursuit",
    "temporal": "temporal",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jump",
    "jumprelu_skip_transcoder": "jump",
}
"""Architecture -> what makes features of its pre-activations."""

OUTSIDE = ("expected_average_only_in", "covariance_whitening")
_LARGEST_MATRIX = 2**40


@dataclasses.dataclass(frozen=True)
class Config:
    """What such a file says, in the fields of a dictionary.

    Attributes:
      architecture: as SAELens names it.
      scaled: decoder rows are to be multiplied by a tensor of the file, from a finetuning before version 6.
      metadata: as a JSON text.
      options: fields that one architecture alone has.
    """

    architecture: str
    d_in: int
    d_out: int
    n_features: int
    normalise: str
    apply_b_dec: bool
    rescale: bool
    hook_z: bool
    k: float | None
    scaled: bool
    hook_in: str | None
    hook_out: str | None
    metadata: str
    options: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """What its output stands for."""
        return "transcoder" if self.architecture.endswith("transcoder") else "sae"

    @property
    def activation(self) -> str:
        """What makes features of pre-activations: a value of `KINDS`."""
        return KINDS[self.architecture]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes that its file must have."""
        features, d_in, d_out = self.n_features, self.d_in, self.d_out
        found: dict[str, tuple[int, ...]] = {"W_dec": (features, d_out), "b_dec": (d_out,)}
        if self.activation in ("pursuit", "temporal"):
            return found | (self._attention() if self.activation == "temporal" else {})
        found["W_enc"] = (d_in, features)
        biases = ("b_gate", "b_mag", "r_mag") if self.activation == "gated" else ("b_enc",)
        found |= dict.fromkeys(biases, (features,))
        found |= {"threshold": (features,)} if self.activation == "jump" else {}
        found |= {"topk_threshold": ()} if self.activation == "batch" else {}
        return found | ({"W_skip": (d_out, d_in)} if "skip" in self.architecture else {})

    def _attention(self) -> dict[str, tuple[int, ...]]:
        """Tensors that only a temporal dictionary has."""
        features, narrow = self.n_features, self.n_features // self.options["bottleneck_factor"]
        rows = {"q_target": narrow, "k_ctx": narrow, "v_ctx": features, "c_proj": features}
        found: dict[str, tuple[int, ...]] = {}
        for layer in range(self.options["n_attn_layers"]):
            for name, size in rows.items():
                found[f"attn_layers.{layer}.{name}.weight"] = (size, features)
                found[f"attn_layers.{layer}.{name}.bias"] = (size,)
        return found if self.options["tied_weights"] else {**found, "W_enc": (self.d_in, features)}


def parse(given: Mapping[str, Any], k: int | None = None, hook: str | None = None) -> Config:
    """What ``cfg.json`` says; fields that versions before 6 left out are filled in as SAELens does.

    Args:
      k, hook: instead of what the file says.

    Raises:
      ConfigError: everything in it that is missing, absurd or not known, in one message.
    """
    problems: list[str] = []
    metadata = given.get("metadata", {})
    if not isinstance(metadata, dict):
        problems, metadata = [f"metadata is {words.value(metadata)}, not an object"], {}
    if is_old(given, metadata):
        given, metadata = renewed(given)
    else:
        unknown = sorted(set(given) - READ - TRAINING)
        if unknown:
            problems.append(f"fields whose effect is not known: {words.some(unknown)}")
    architecture = given.get("architecture")
    if not isinstance(architecture, str) or architecture not in KINDS:
        known = ", ".join(KINDS)
        raise ConfigError(f"cfg.json: architecture {words.value(architecture)} is none of {known}")
    find = Fields(given, problems)
    sizes = {name: find.whole(name) for name in ("d_in", "d_sae")}
    transcoder = architecture.endswith("transcoder")
    sizes["d_out"] = find.whole("d_out") if transcoder else sizes["d_in"]
    if max(sizes["d_in"], sizes["d_out"]) * sizes["d_sae"] > _LARGEST_MATRIX:
        problems.append(f"d_in {sizes['d_in']} and d_sae {sizes['d_sae']} make an absurd matrix")
    find.dtype()
    find.word("activation_fn", ("relu", "topk"), "relu")
    config = Config(
        architecture=architecture,
        d_in=sizes["d_in"],
        d_out=sizes["d_out"],
        n_features=sizes["d_sae"],
        normalise=find.word("normalize_activations", _normalisations(architecture), "none"),
        apply_b_dec=find.flag("apply_b_dec_to_input", True),
        # Only those that keep the k largest know this field; its default is that of each class.
        rescale=KINDS[architecture] in ("topk", "batch")
        and find.flag("rescale_acts_by_decoder_norm", KINDS[architecture] == "batch"),
        hook_z=find.word("reshape_activations", ("none", "hook_z"), "none") == "hook_z",
        k=find.k(KINDS[architecture], sizes["d_sae"], k),
        scaled=find.flag("finetuning_scaling_factor", False),
        hook_in=hook or find.text(metadata, "hook_name"),
        hook_out=find.text(metadata, "hook_name_out")
        if transcoder
        else hook or find.text(metadata, "hook_name"),
        metadata=json.dumps(metadata),
        options=_options(architecture, find, sizes),
    )
    _check_transcoder(config, problems)
    if problems:
        raise ConfigError("cfg.json: " + "; ".join(problems))
    return config


def _normalisations(architecture: str) -> tuple[str, ...]:
    """The modes that SAELens has for an architecture."""
    usual = ("none", "constant_norm_rescale", "layer_norm")
    if architecture == "temporal":
        return (*usual, "constant_scalar_rescale")
    return (*usual, *OUTSIDE[: 1 if architecture == "matching_pursuit" else 2])


def _options(architecture: str, find: Fields, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Fields that one architecture alone has, with the defaults of its class."""
    if architecture == "matching_pursuit":
        return {
            "residual_threshold": find.number("residual_threshold", 1e-2),
            "max_iterations": find.whole("max_iterations", sizes["d_in"]),
            "stop_on_duplicate_support": find.flag("stop_on_duplicate_support", True),
        }
    if architecture != "temporal":
        return {}
    found: dict[str, Any] = {
        "n_heads": find.whole("n_heads", 8),
        "n_attn_layers": find.whole("n_attn_layers", 1),
        "bottleneck_factor": find.whole("bottleneck_factor", 64),
        "sae_diff_type": find.word("sae_diff_type", ("relu", "topk"), "topk"),
        # Without a number nothing is left out, as if it were all of them.
        "kval_topk": min(find.whole("kval_topk", sizes["d_sae"]), sizes["d_sae"]),
        "tied_weights": find.flag("tied_weights", True),
        "activation_normalization_factor": find.number("activation_normalization_factor", 1.0, 1e-30),
    }
    if sizes["d_sae"] % (found["n_heads"] * found["bottleneck_factor"]):
        find.problems.append("d_sae is no multiple of n_heads times bottleneck_factor")
    if found["n_attn_layers"] > 1000:
        find.problems.append(f"n_attn_layers {found['n_attn_layers']} is absurd")
    return found


def _check_transcoder(config: Config, problems: list[str]) -> None:
    """Say what SAELens itself leaves undefined for dictionaries that write elsewhere than they read."""
    if config.kind != "transcoder":
        return
    if config.apply_b_dec:
        problems.append("apply_b_dec_to_input of a transcoder: its b_dec belongs to another point")
    if config.hook_z:
        problems.append("reshape_activations hook_z of a transcoder is not defined")
    if config.normalise in ("constant_norm_rescale", "layer_norm"):
        problems.append(
            f"normalize_activations {config.normalise} of a transcoder: its output has no way back"
        )
