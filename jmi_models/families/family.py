"""What a family is: a reader of its config and a map of its tensor names. Both are data."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.decoder.ops import ACTIVATIONS
from jmi_models.decoder.transformer import Transformer
from jmi_models.disk import bounds, words
from jmi_models.disk.layout import Key
from jmi_models.disk.tensors import HasShape
from jmi_models.families import rope_config
from jmi_models.rwkv.architecture import Rwkv

AnyArch = Transformer | Rwkv
"""An architecture that can be loaded and saved."""


@dataclasses.dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
      name: its Hugging Face ``model_type``.
      from_config: ``config.json`` as a dict -> architecture.
      keys: architecture -> (parameter path -> `Key`), at least for every parameter it has.
      prefix: what tensor names begin with, unless the checkpoint was saved without its head.
      ignored: patterns of checkpoint tensors that carry no parameters.
      fit: (architecture, keys, tensors) -> architecture with the sizes that only the tensors tell.
    """

    name: str
    from_config: Callable[[Mapping[str, Any]], Any]
    keys: Callable[[Any], Mapping[str, Key]]
    prefix: str = "model."
    ignored: tuple[str, ...] = ()
    fit: Callable[[Any, Mapping[str, Key], Mapping[str, HasShape]], Any] | None = None


# Fields of config.json that describe training, generation or bookkeeping, not the forward pass.
_NEUTRAL = {
    *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path"),
    *("use_cache", "initializer_range", "attention_dropout", "bos_token_id", "eos_token_id"),
    *("pad_token_id", "unk_token_id", "tokenizer_class", "auto_map", "id2label", "label2id"),
    *("return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward"),
    *("is_encoder_decoder", "problem_type", "task_specific_params", "use_bfloat16", "torchscript"),
    *(
        "_attn_implementation",
        "attn_implementation",
        "attention_probs_dropout_prob",
        "gradient_checkpointing",
    ),
    *("embd_pdrop", "resid_pdrop", "attn_pdrop", "dropout", "hidden_dropout", "classifier_dropout"),
    *("residual_dropout", "embedding_dropout", "activation_dropout", "layerdrop", "init_std"),
    *("output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "is_decoder"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
    *("summary_first_dropout", "prefix", "cache_implementation"),
    "quantization_config",  # of how weights are stored, `jmi_models.weights.quantised`
    *rope_config.KEYS,
}


class UnreadFields(UserWarning):
    """Fields of a config that nothing read, in ``names``."""

    def __init__(self, names: list[str], where: str = "config.json"):
        super().__init__(f"{where}: fields without effect here: {words.some(names)}")
        self.names = names


class Reader:
    """Reads typed fields of a config and remembers which ones; says what is wrong by name."""

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        self.read: set[str] = set()

    def count(self, name: str, default: int | None = None, *, old: str | None = None) -> int:
        """A positive integer; ``old`` is the name that earlier configs gave it."""
        if old is not None:
            self.read.update((name, old))
            name = old if self.config.get(name) is None and self.config.get(old) is not None else name
        return bounds.integer(name, self._get(name, default))

    def layers(self, name: str = "num_hidden_layers", *, old: str | None = None) -> int:
        """The number of layers."""
        return bounds.integer(name, self.count(name, old=old), most=bounds.MOST_LAYERS)

    def chosen(self, name: str, default: int | None, n_experts: int) -> int:
        """How many of the experts a token is given."""
        return bounds.integer(name, self._get(name, default), most=n_experts)

    def positive(self, name: str, default: float) -> float:
        """A number above zero."""
        return bounds.positive(name, self._get(name, default))

    def eps(self, name: str, default: float) -> float:
        """What a norm adds under its root."""
        return bounds.positive(name, self._get(name, default), most=1.0)

    def index(self, name: str, default: int) -> int:
        """An integer from zero on."""
        return bounds.integer(name, self._get(name, default), least=0)

    def optional(self, name: str, default: float | None = None) -> float | None:
        """A number above zero, or None where the config says null."""
        return None if self.config.get(name, default) is None else self.positive(name, default or 0.0)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        return bounds.flag(name, self._get(name, default))

    def activation(self, name: str, default: str) -> str:
        """A known activation function."""
        value = self._get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise ConfigError(
                f"config.json: {name} {words.value(value)} is unknown; known: {', '.join(ACTIVATIONS)}"
            )
        return str(value)

    def only(self, name: str, value: Any) -> None:
        """Refuse any other value of a field that is implemented for one value only."""
        if self._get(name, value) != value:
            given = words.value(self.config[name])
            raise ConfigError(f"config.json: {name}={given} is not supported, only {value!r}")

    def divides(self, part_name: str, part: int, whole_name: str, whole: int) -> None:
        """Refuse head counts that do not divide."""
        if whole % part:
            raise ConfigError(f"config.json: {part_name}={part} does not divide {whole_name}={whole}")

    def finish(self) -> None:
        """Warn about fields nobody read."""
        if unread := self.unread():
            warnings.warn(UnreadFields(unread), stacklevel=2)

    def unread(self) -> list[str]:
        """Fields that have a value which nobody read."""
        given = {name for name, value in self.config.items() if value is not None}
        return sorted(given - self.read - _NEUTRAL)

    def ignore(self, *names: str) -> None:
        """Fields that this family knows and that change nothing."""
        self.read.update(names)

    def _get(self, name: str, default: Any) -> Any:
        self.read.add(name)
        value = self.config.get(name)
        if value is None and default is None:
            raise ConfigError(f"config.json: '{name}' is missing")
        return default if value is None else value
