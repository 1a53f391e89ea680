"""What a family is: a reader of its config and a map of its tensor names. Both are data."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.ops import ACTIVATIONS
from jmi_models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Key:
    """Where a parameter lies in a checkpoint.

    Attributes:
      name: tensor name, ``{i}`` standing for the layer.
      layout: its axes on disk; a bracket is one disk axis that holds several logical axes. The
        loader permutes them into the order of the parameter tree.
    """

    name: str
    layout: str


@dataclasses.dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
      name: its Hugging Face ``model_type``.
      from_config: ``config.json`` as a dict -> architecture.
      keys: parameter path -> `Key`, for every parameter any member of the family has.
      ignored: patterns of checkpoint tensors that carry no parameters.
    """

    name: str
    from_config: Callable[[Mapping[str, Any]], Transformer]
    keys: Mapping[str, Key]
    ignored: tuple[str, ...] = ()


# Fields of config.json that describe training, generation or bookkeeping, not the forward pass.
_NEUTRAL = {
    *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path"),
    *("use_cache", "initializer_range", "attention_dropout", "bos_token_id", "eos_token_id"),
    *("pad_token_id", "unk_token_id", "tokenizer_class", "auto_map", "id2label", "label2id"),
    *("return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward"),
    *("is_encoder_decoder", "problem_type", "task_specific_params", "use_bfloat16", "torchscript"),
    *("_attn_implementation", "attn_implementation"),
    # Read by `jmi_models.rope`.
    *("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"),
}


class Reader:
    """Reads typed fields of a config and remembers which ones; says what is wrong by name."""

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        self.read: set[str] = set()

    def count(self, name: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ConfigError(f"config.json: '{name}' must be a positive integer, got {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        """A number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"config.json: '{name}' must be a number, got {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"config.json: '{name}' must be true or false, got {value!r}")
        return value

    def activation(self, name: str, default: str) -> str:
        """A known activation function."""
        value = self._get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise ConfigError(f"config.json: {name} '{value}' is unknown; known: {', '.join(ACTIVATIONS)}")
        return str(value)

    def only(self, name: str, value: Any) -> None:
        """Refuse any other value of a field that is implemented for one value only."""
        if self._get(name, value) != value:
            raise ConfigError(f"config.json: {name}={self.config[name]!r} is not supported, only {value!r}")

    def divides(self, part_name: str, part: int, whole_name: str, whole: int) -> None:
        """Refuse head counts that do not divide."""
        if whole % part:
            raise ConfigError(f"config.json: {part_name}={part} does not divide {whole_name}={whole}")

    def even(self, name: str, value: int) -> None:
        """Refuse odd rotary widths: the two halves of a head are rotated against each other."""
        if value % 2:
            raise ConfigError(f"config.json: {name}={value} must be even for rotary embeddings")

    def finish(self) -> None:
        """Refuse quantised weights; warn about fields that nobody read."""
        self.read.add("quantization_config")
        if self.config.get("quantization_config"):
            method = self.config["quantization_config"].get("quant_method", "unknown")
            raise ConfigError(
                f"weights quantised with '{method}' are not supported; use the full-precision model"
            )
        unread = sorted(set(self.config) - self.read - _NEUTRAL)
        if unread:
            warnings.warn(f"config.json: fields without effect here: {', '.join(unread)}", stacklevel=2)

    def _get(self, name: str, default: Any) -> Any:
        self.read.add(name)
        value = self.config.get(name)
        if value is None and default is None:
            raise ConfigError(f"config.json: '{name}' is missing")
        return default if value is None else value
