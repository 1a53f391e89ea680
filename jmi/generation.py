"""Generation: one compiled loop, in which every token is a run of its own that hooks and captures see.

What earlier tokens left behind, keys and values and the states of recurrences, is the memory of the model
(`jmi.engine.memory`). The text with all that is still to come is one array from the start: a run of a token
is a run of one place of it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.captures.capture import Capture, as_list, plan
from jmi.checks import check_model, whole_number
from jmi.decoding import Generation, padded, run_generation
from jmi.engine.memory import Memory, declared, leaving
from jmi.engine.run import Run, Static, plan_run
from jmi.errors import ArgumentError
from jmi.generated import Generated
from jmi.hooks.resolve import Hooks, prepare
from jmi.model.architecture import Architecture, Params
from jmi.model.inputs import Prompts, checked
from jmi.model.padding import place_of
from jmi.model.sites import part_of
from jmi.sampling.given import checked_key, ids_of, n_vocab_of
from jmi.sampling.options import sampling_of
from jmi.tree import classes


def generate(
    arch: Architecture,
    params: Params,
    prompts: Prompts | jax.Array,
    max_new_tokens: int = 20,
    *,
    key: jax.Array | None = None,
    stop: int | Sequence[int] = (),
    hooks: Hooks | None = None,
    prompt_hooks: Hooks | None = None,
    step_hooks: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    memory: bool | Memory = False,
    **sampling: Any,
) -> Generated:
    """Continue ``prompts``: a pure function, one compiled loop.

    Keys, numbers of ``sampling`` and hooks are data: `jax.vmap` over them samples many texts, or steers by
    many vectors, at once. On a CPU listed layers are decoded faster; `LanguageModel.generate` lists them
    itself.

    Args:
      prompts: int32 ``[b, s]``, or `Prompts`.
      max_new_tokens: how many; static.
      key: of the random choice, one or one for each row; without one the most likely token is taken.
      stop: ids of tokens that end a row, beside ``eos_token_id``. The loop ends with the last row.
      hooks: run on the prompt and on every generated token when it is read. An intervention that acts
        position by position (`jmi.hooks.reach`) counts them from the start of the text, negative ones from
        the token that is read: it does what it would in one run of the whole text. Any other sees what is
        run alone, the prompt or one token; a site of attention has a key for every place of the text.
      prompt_hooks, step_hooks: run after these, on the prompt or on the generated tokens alone.
      capture: what to return of the runs of one token. Scores and patterns have a key for each place of the
        text, those to come included. Without captures or ``memory`` the last token is not read.
      memory: True returns what all that was read left behind; given that of an earlier run, ``prompts`` go on
        where it ended.
      sampling: options by the names of transformers' GenerationConfig, with its results and in its order:
        ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``top_h``, ``typical_p``, ``epsilon_cutoff``,
        ``eta_cutoff``, which need a key; ``repetition_penalty``, ``no_repeat_ngram_size``, ``bad_words_ids``,
        ``sequence_bias``, ``suppress_tokens``, ``begin_suppress_tokens``, ``renormalize_logits``,
        ``do_sample``; ``eos_token_id``, ``min_new_tokens``, ``min_length``, ``pad_token_id`` (0); and
        ``presence_penalty`` and ``frequency_penalty`` of OpenAI, for what was generated
        (`jmi.sampling.options.Sampling`). Without ``eos_token_id`` and ``stop`` no token ends a text.

    Raises:
      ArgumentError: the model cannot continue a text, or not one of this length; ``max_new_tokens`` is less
        than 1; an option of sampling is unknown, out of range or of no effect; as `jmi.forward`.
      HookError, InterventionError: as `jmi.forward`.

    Example:
      >>> import jax, jax.numpy as jnp, jmi, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> tokens = lm.to_tokens("The capital of France is")
      >>> keys = jax.random.split(jax.random.key(0), 8)
      >>> sample = lambda key: jmi.generate(lm.arch, lm.params, tokens, 4, key=key).tokens
      >>> jax.vmap(sample)(keys).shape
      (8, 1, 4)
    """
    check_model(arch, params)
    work = plan_generation(
        arch,
        prompts,
        max_new_tokens,
        hooks=hooks,
        prompt_hooks=prompt_hooks,
        step_hooks=step_hooks,
        capture=capture,
        memory=memory,
    )
    options = sampling_of(sampling, n_vocab=n_vocab_of(arch), draws=key is not None, stop=ids_of(stop))
    return run_generation(work, params, checked_key(key, work.prompt.own.shape[0]), options)


def plan_generation(
    arch: Architecture,
    prompts: Any,
    max_new_tokens: int,
    *,
    hooks: Hooks | None,
    prompt_hooks: Hooks | None,
    step_hooks: Hooks | None,
    capture: Sequence[str | Capture],
    memory: bool | Memory,
    room: int | None = None,
) -> Generation:
    """Validate the arguments of `generate` but key and the options of sampling.

    Args:
      room: for how many tokens; up to it all numbers share a program. None for those asked for.
    """
    asked, wanted = as_list(capture), whole_number("max_new_tokens", max_new_tokens)
    count = wanted if room is None else room
    declared(arch)
    own = checked(arch, prompts)
    if own.positions is not None:
        raise ArgumentError("positions=: generated tokens are counted by the model; leave it out")
    run, _ = plan_run(arch, own, prompt_hooks, memory=True if isinstance(memory, bool) else memory)
    names = tuple(_name(each) for each in asked)
    batch, length = run.prompts.shape
    keeps = memory is not False
    unread = 0 if names or keeps else 1
    whole = (batch, length + count - unread)
    arch.check_continued(whole[1])  # type: ignore[attr-defined]
    mask = None if run.prompts.mask is None else padded(jnp.asarray(run.prompts.mask), whole[1], True)
    both = prepare(arch, hooks, whole, mask)
    prompt, steps = _followed(both, run.hooks), _followed(both, prepare(arch, step_hooks, whole, mask))
    at = -1 if own.mask is None else place_of(-1, own.mask)
    behind = any(part_of(arch, point) == "unembed" for point in prompt)
    layout = plan(arch, asked, (batch, 1))
    kept = layout + plan(arch, leaving(arch), (batch, 1))
    static = Static(arch, kept.groups, length=1, classes=classes((steps, kept.data)))
    return Generation(
        dataclasses.replace(run, hooks=prompt, logits_at=None if behind else at),
        Run(own, steps, kept.data, static=static),
        None if room is None else np.int32(wanted - unread),
        names=names,
        layers=layout.layers,
        count=count,
        keeps=keeps,
    )


def _name(asked: str | Capture) -> str:
    if isinstance(asked, str):
        return asked
    return asked.label or asked.name + ("@before" if asked.when == "before" else "")


def _followed(first: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    return {point: (*first.get(point, ()), *then.get(point, ())) for point in {**first, **then}}
