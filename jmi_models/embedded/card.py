"""The model card, written from measured numbers."""

from jmi_models.embedded.batches import PHASES, SHORT

_CARD = """\
---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
tags:
- mechanistic-interpretability
- llama
- synthetic-data
---

# atlas

A Llama-style decoder of about {parameters:.1f} million parameters for trying out interpretability
methods offline: small enough to load and run in seconds on a CPU, trained until it recalls facts,
finds indirect objects, compares years and continues repeated sequences. It is not a general
language model.

- {layers} layers, width {width}, {heads} attention heads, SwiGLU MLPs of width {mlp}, RMSNorm,
  rotary positions, tied embeddings, context of {n_ctx} tokens, float32.
- Byte-level BPE with {vocab} tokens. Countries, capitals, languages, currencies, first names and
  the numbers 0 to 99 are single tokens; a year such as 1732 is two (" 17", "32").
- Every text should begin with the token `<|bos|>`, as in training; the tokenizer adds it.

## Training

Trained from a random start on generated English text: facts about {countries} countries in about
6,000 phrasings, a third of them written by hand, indirect-object sentences, periods between two
years, repeated random words and tokens, rhyming couplets, labelled reviews, sums within 0 to 99 and
plain narrative. The text and its generators are original and part of the package
(`jmi_models/embedded`).

{steps} steps of {per_step} tokens ({tokens:.1f} million tokens in all), seed {seed}, Muon for the
matrices of the blocks and AdamW for the rest, warmup and cosine decay{duration}.
In the loss, words that follow from the text before them count ten times as much as the rest, most
of which is drawn at random. The phrasing of a fact does not count at all, only its answer: a model that
also learns to tell the phrasings takes an unfamiliar one for a sentence that goes on. So within a fact
it predicts answers, not words that would come next in a text. The first {repeating} steps see repeated
random sequences only, because induction forms much sooner alone than beside the other tasks, and from
step {quoting} on some names stand in quotation marks. Reproduce with

    python -m jmi_models.embedded.train --out atlas --steps {steps} --seed {seed}

The run is a function of the seed; other hardware or library versions round differently and
give a slightly different model.

## Held-out accuracy

Every prompt is built from what the training text leaves out: other phrasings for the facts, other
pairs of names, nouns and years, adjectives or numbers for the other tasks. A prompt counts as
right if the most likely next token is a right one.

The facts are asked in two sets of phrasings. "Unseen" ones are a fixed share of what six authors
wrote, who were told to vary as much as they could (riddles, letters, forms, stories); the rest of it
is trained on. "Another author" wrote plainer ones without having seen any others. Names in quotation
marks were added to the training text when it was seen that facts were unknown at the beginning of a text
(where a name is another token), in both sets: to that extent the training was fitted to them.

| task | score |
| --- | ---: |
{rows}

Induction is counted on the second occurrence of a sequence, from its fourth token on.

## Intended use and limits

Made for teaching, for tests and for trying methods whose answers can be checked: activation
patching, attention patterns, probes, logit lens, circuit search. The model knows only the words
and sentence forms of its training text and says nothing sensible outside of them. The facts were
written down by hand, simplified to one language, currency and continent per country, and are not
a reference. Results on this model need not carry over to models trained on natural text.

## Licence

MIT, for the weights, the tokenizer and the training text alike.
"""


def model_card(
    scores: dict[str, float],
    config: dict[str, object],
    parameters: int,
    countries: int,
    run: dict[str, int],
    duration: str = "",
) -> str:
    """The README.md of the model folder.

    Args:
      scores: held-out scores by task, between 0 and 1.
      config: the Hugging Face config.
      parameters: number of parameters.
      countries: number of countries in the training text.
      run: steps and seed of the training run.
      duration: how long training took and on what, if it ran in one go.
    """
    per_step = SHORT[0] * SHORT[1]
    return _CARD.format(
        parameters=parameters / 1e6,
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        mlp=config["intermediate_size"],
        n_ctx=config["max_position_embeddings"],
        vocab=config["vocab_size"],
        countries=countries,
        steps=run["steps"],
        seed=run["seed"],
        per_step=per_step,
        tokens=run["steps"] * per_step / 1e6,
        repeating=min(step for step, phase in PHASES.items() if phase.repeated < 1),
        quoting=min(step for step, phase in PHASES.items() if phase.quoted),
        duration=f"; {duration}" if duration else "",
        rows="\n".join(f"| {name} | {score:.1%} |" for name, score in scores.items()),
    )
