"""LanguageModel: architecture, parameters and tokenizer in one hand. Convenience, not semantics."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jmi.captures.capture import Capture
from jmi.captures.output import Output
from jmi.checks import check_model, flag, shown, whole_number
from jmi.decoding import Generation, run_generation
from jmi.engine.forward import finished, run_compiled
from jmi.engine.lengths import cut, length_for, padded, rooms_for
from jmi.engine.listed import for_tokens
from jmi.engine.memory import Memory
from jmi.engine.programs import compiled
from jmi.engine.run import plan_run
from jmi.engine.site_shapes import SiteShapes, shapes_of
from jmi.engine.takes_padding import held_in
from jmi.errors import ArgumentError, JmiError, TokenizerError
from jmi.generated import Generated
from jmi.generation import plan_generation
from jmi.hooks.resolve import Hooks
from jmi.model.architecture import Architecture, Params
from jmi.model.inputs import Prompts, as_prompts, checked
from jmi.sampling.given import ends_of, key_of, n_vocab_of, with_tokens_of
from jmi.sampling.options import Sampling, sampling_of
from jmi.tokenizers import Batch, Encoding, Tokenizer, chat


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model a person holds: text in, results out. A pytree, whose only arrays are the weights.

    So a technique that takes one can be jitted, differentiated and mapped over models as it stands.

    Attributes:
      arch: what it computes.
      params: its weights, a pytree.
      tokenizer: None when the model ships none; only methods that use text then fail.
      name: as it was asked for.
      identity: gives the commit, or a content hash, of its files (computed when called).
    """

    arch: Architecture
    params: Params
    tokenizer: Tokenizer | None = None
    name: str = "unnamed"
    identity: Callable[[], str | None] = lambda: None

    def __repr__(self) -> str:
        sizes = {"n_layers": self.arch.n_layers}
        for name in ("d_model", "n_heads", "d_vocab", "n_ctx"):
            if isinstance(getattr(self.arch, name, None), int):
                sizes[name] = getattr(self.arch, name)
        count = sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(self.params))
        kind = getattr(self.arch, "family", type(self.arch).__name__)
        shape = ", ".join(f"{name}={size:,}" for name, size in sizes.items())
        return f"LanguageModel({self.name!r}: {kind}, {shape}, {count:,} parameters)"

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the parameters and so of the computation."""
        return np.dtype(jax.tree.leaves(self.params)[0].dtype)

    def derived(self, arch: Architecture, params: Params, how: str) -> "LanguageModel":
        """Other weights under the same tokenizer, such as processed or shuffled ones.

        Args:
          how: what was done, added to the name; the files the model came from no longer identify it.
        """
        return LanguageModel(arch, params, self.tokenizer, f"{self.name}, {how}")

    def run(
        self,
        prompts: Any,
        hooks: Hooks | None = None,
        capture: Sequence[str | Capture] = (),
        *,
        start_at_layer: Any = None,
        carry: Any = None,
        stop_at_layer: Any = None,
        memory: bool | Memory = False,
        logits_at: Any = None,
        exact: bool = False,
    ) -> Output:
        """Run the model, compiled; arguments and result as `jmi.forward`.

        Args:
          prompts: a text, several texts, tokens ``[b, s]``, ``(tokens, mask)`` or `Prompts`. Texts are padded
            on the left; position 0 is the first token of each and -1 the last, in arrays by way of
            `Output.at`.
          exact: run at the very length of the prompts. Otherwise they are padded to the next of few lengths
            (`jmi.engine.lengths`) where that costs little and all hooks and reducers take padding, as those
            of jmi do; the results are the same up to rounding, cut on the host.

        Nothing recompiles for another vector, strength, position, head, layer or mask, nor for most prompts
        of another length; another number of rows or kind of hook does.

        Raises:
          ArgumentError: no token, more tokens than the context holds, or ids outside the vocabulary.
          TokenizerError: text without a tokenizer.
          HookError, InterventionError: as `jmi.forward`.
        """
        prompts = checked(self.arch, self.prompts(prompts))
        plan = functools.partial(
            plan_run,
            self.arch,
            hooks=hooks,
            capture=capture,
            start_at_layer=start_at_layer,
            carry=carry,
            stop_at_layer=stop_at_layer,
            memory=memory,
            logits_at=logits_at,
        )
        run, layout = plan(prompts)
        length = None
        whole = start_at_layer is None and stop_at_layer is None and memory is False
        if not flag("exact", exact) and whole:
            length = length_for(self.arch, self.params, prompts, held_in(self.arch, hooks, capture))
        if length is not None:
            # What does not fit is said below, in numbers of the prompts themselves.
            with contextlib.suppress(JmiError):
                more, layout = plan(padded(prompts, length))
                out = finished(more, layout, *run_compiled(more, self.params))
                return cut(out, layout, self.arch, prompts)
        return finished(run, layout, *run_compiled(run, self.params))

    def generate(
        self,
        prompts: Any,
        max_new_tokens: int = 20,
        *,
        stop: int | str | Sequence[int | str] = (),
        seed: int | Sequence[int] | None = None,
        hooks: Hooks | None = None,
        prompt_hooks: Hooks | None = None,
        step_hooks: Hooks | None = None,
        capture: Sequence[str | Capture] = (),
        memory: bool | Memory = False,
        exact: bool = False,
        **sampling: Any,
    ) -> Generated:
        """Continue texts or tokens ``[b, s]``, compiled; as `jmi.generate`, and the result has ``text``.

        Args:
          stop: ids and texts that end a row. Texts are looked for in the end: they save no time.
          seed: of the random choice, or one for each row, which draws what it draws alone; without one the
            most likely token is taken.
          sampling: as `jmi.generate`; ``eos_token_id`` is the tokenizer's unless given, ``()`` is none. What
            else a ``generation_config.json`` names is not read.
          exact: compile for these very numbers of tokens. Otherwise prompts are padded as in `run`, with room
            for more tokens than are generated, unless memory is asked for or captures have a key for each
            place.

        Raises:
          ArgumentError: a model that gives NaN, or options that allow no token; texts in ``stop`` with
            ``memory`` or under a transformation of jax; else as `jmi.generate`.

        Example:
          >>> import jmi_models
          >>> jmi_models.load("atlas").generate("The capital of Japan is", stop=" and").text
          [' Tokyo and']
        """
        prompts = checked(self.arch, self.prompts(prompts))
        key, (words, ids) = key_of(seed, prompts.shape[0]), ends_of(stop)
        if words and self._text() and memory is not False:
            raise ArgumentError("stop=, a text: memory would hold what comes after it; give token ids")
        options = with_tokens_of(self.tokenizer, sampling, n_vocab_of(self.arch))
        chosen = sampling_of(options, n_vocab=n_vocab_of(self.arch), draws=key is not None, stop=ids)
        plan = functools.partial(
            plan_generation,
            self.arch,
            hooks=hooks,
            prompt_hooks=prompt_hooks,
            step_hooks=step_hooks,
            capture=capture,
            memory=memory,
        )
        work, rooms = plan(prompts, max_new_tokens), None
        if not flag("exact", exact) and memory is False and not work.captures_keys:
            given = [one for some in (hooks, prompt_hooks, step_hooks) for one in held_in(self.arch, some)]
            given += held_in(self.arch, None, capture)
            rooms = rooms_for(self.arch, self.params, prompts, work.count, given)
        found = None
        if rooms is not None:
            # Of a text that would be too long with all that room there is the exact one.
            with contextlib.suppress(JmiError):
                more = plan(padded(prompts, rooms[0], left=True), max_new_tokens, room=rooms[1])
                found = self._generated(more, key, chosen).first(work.count)
        found = found or self._generated(work, key, chosen)
        found = dataclasses.replace(found, prompts=prompts, tokenizer=self.tokenizer).checked()
        return found.cut(words, chosen.pad_token_id) if words else found

    def _generated(self, work: Generation, *given: Any) -> Generated:
        return _generate(work, self.params, *given, for_tokens(self.params, work.count, self.arch.n_layers))

    def prompts(self, given: Any) -> Prompts:
        """Prompts of a text, of several, of tokens as given, ``(tokens, mask)``, or `Prompts` themselves.

        Several texts are padded on the left.

        Raises:
          ArgumentError: an empty text, or what is no prompt.
          TokenizerError: text without a tokenizer.
        """
        if isinstance(given, str):
            return Prompts(self.to_tokens(given))
        if isinstance(given, (list, tuple)) and given and all(isinstance(each, str) for each in given):
            if not all(given):
                raise ArgumentError("a prompt is empty: there is no token to run")
            batch = self.encode_batch(given, padding="left")
            return Prompts(batch.tokens, batch.mask)
        return as_prompts(given)

    def to_tokens(self, prompt: str) -> np.ndarray:
        """Tokens int32 ``[1, s]`` to run; ArgumentError for an empty prompt (a lone BOS says nothing)."""
        if not prompt:
            raise ArgumentError("the prompt is empty: there is no token to run")
        return self.encode(prompt)

    def encode(self, text: str, special_tokens: bool = True) -> np.ndarray:
        """Tokens int32 ``[1, s]`` of a text."""
        return self._text().encode(text, special_tokens)[None]

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """A conversation as one text, by the model's chat template; as `jmi.tokenizers.chat.render`.

        Its special tokens stand in it: run ``lm.encode(text, special_tokens=False)``, not the text itself.
        """
        return chat.render(self._text(), messages, **options).text

    def encode_batch(self, texts: Sequence[str], padding: Literal["left", "right"]) -> Batch:
        """Texts padded to one length, with the mask that `run` needs."""
        return self._text().encode_batch(texts, padding)

    def encode_with_offsets(self, text: str, special_tokens: bool = True) -> Encoding:
        """Tokens with the characters each covers."""
        return self._text().encode_with_offsets(text, special_tokens)

    def decode(self, tokens: Any) -> str:
        """Text of token ids."""
        return self._text().decode(tokens)

    def token_id(self, word: str) -> int:
        """Id of a word that is a single token; TokenizerError when it is several."""
        return self._text().token_id(word)

    def token_string(self, index: int) -> str:
        """One token as text; ``<index>`` without a tokenizer, or for a row beyond its vocabulary."""
        known = self.tokenizer is not None and self.tokenizer.has(index)
        return self._text().token_string(index) if known else f"<{int(index)}>"

    def sites(self, batch: int = 1, pos: int = 1) -> SiteShapes:
        """Shape and dtype of every site for ``batch`` rows of ``pos`` tokens, shown as a table."""
        sizes = whole_number("batch", batch), whole_number("pos", pos)
        return SiteShapes(shapes_of(self.arch, jax.eval_shape(lambda: self.params), *sizes))

    def _text(self) -> Tokenizer:
        if self.tokenizer is None:
            raise TokenizerError(f"{self.name} ships no tokenizer; give token ids instead of text")
        return self.tokenizer


@compiled()
def _generate(work: Generation, params: Params, key: Any, sampling: Sampling, blocks: Any) -> Generated:
    return run_generation(work, params, key, sampling, blocks)


def check_lm(lm: Any) -> LanguageModel:
    """``lm``, found to be a LanguageModel with parameters of its architecture.

    Raises:
      ArgumentError: something else, such as an architecture alone.
    """
    if not isinstance(lm, LanguageModel):
        raise ArgumentError(
            f"lm={shown(lm)}: give a LanguageModel; of an architecture and its parameters make one with "
            "jmi.LanguageModel(arch, params)"
        )
    check_model(lm.arch, lm.params)
    return lm


jax.tree_util.register_dataclass(LanguageModel, ["params"], ["arch", "tokenizer", "name", "identity"])


def check_logits(lm: LanguageModel, logits: Any) -> None:
    """Raise ArgumentError when ``logits`` are no numbers to compare."""
    if jnp.isnan(logits).any() or (logits == jnp.inf).any():
        raise ArgumentError(
            f"{lm.name} gives NaN or infinite logits on this prompt (in {lm.dtype.name}): try float32, "
            "and look at its weights"
        )
