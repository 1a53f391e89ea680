"""`score`: how good dictionaries are, over a corpus, in one pass over its activations and one of losses."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from jmi.checks import flag, shown, whole_number
from jmi.errors import ArgumentError
from jmi.lm import LanguageModel, check_lm
from jmi.model.sites import find
from jmi_sparse.scoring.corpus import Batch, batches, corpus_rows, special_ids
from jmi_sparse.scoring.losses import Loss, Special, Variant, groups_of, losses_of, spliced, variants_of
from jmi_sparse.scoring.places import Placed, captured, placed
from jmi_sparse.scoring.scored import Losses, Scores, of_features, of_outputs
from jmi_sparse.scoring.sums import Features, Outputs, measure

CONVENTIONS: Mapping[Any, Mapping[str, bool]] = {
    False: {},
    True: {"kept": True, "ablated": False},
    "saelens": {"kept": True, "counted": False},
}
"""By ``skip_special``: what is done at special tokens."""


def score(
    lm: LanguageModel,
    prompts: Any,
    dictionaries: Any,
    *,
    batch_size: int = 8,
    losses: bool = True,
    skip_special: bool | Literal["saelens"] = False,
    progress: bool = True,
) -> Scores:
    """Scores of any number of dictionaries over a corpus, streaming: no activations are kept.

    One run of the model per batch serves all dictionaries; sums are made on the device in at least float32,
    about means, and added up in float64. Losses need runs of their own: for each batch one of the model, one
    with each dictionary, and two for each site ablated. As the mean that ablates is that of the whole corpus,
    they come after the first pass.

    Every real token counts, padding never. Cross-entropy counts every token that another follows.

    | at special tokens | ``False`` | ``True`` | ``"saelens"`` |
    |---|---|---|---|
    | activations count | yes | no | no |
    | the dictionary replaces the site | yes | no | no |
    | ablations act | yes | no | yes |
    | what is predicted there counts | yes | yes | no |

    The three differ much where the first token has a norm unlike any other: to ablate it is worse than all
    the rest.

    Args:
      prompts: as `LanguageModel.prompts` takes them, of any lengths.
      dictionaries: site that is read -> dictionary, several of one site as a list, or with ``blocks.*`` a
        `DictionarySet`; or a set or dictionary alone, which say where they read. Each is spliced by itself,
        a cross-layer transcoder with all its layers. A transcoder is compared with what is at its
        ``hook_out``. A site whose values are not those of the training is no error, and gives bad scores.
      batch_size: prompts that run together. ``fvu_saelens_legacy`` and ``fvu_sparsify`` depend on it, and
        nothing else does.
      losses: run the model with each dictionary in it.
      skip_special: as above. Special are the named tokens of the tokenizer.
      progress: show a bar, if standard error is a terminal.

    Raises:
      ArgumentError: a dictionary that does not fit its site, or that cannot stand in a model (then
        ``losses=False``); BatchTopK; no token that counts; a model without tokenizer where it must say which
        tokens are special.
      HookError: no such site.

    Example:
      >>> import jax, jax.numpy as jnp, jmi_models, jmi_sparse
      >>> lm = jmi_models.load("atlas")
      >>> rows = jax.random.normal(jax.random.key(0), (256, lm.arch.d_model)) / 8
      >>> sae = jmi_sparse.Dictionary(rows.T, rows, jnp.zeros(128), jmi_sparse.TopK(8), jnp.zeros(256))
      >>> site = "blocks.2.hook_resid_post"
      >>> found = jmi_sparse.score(lm, ["The capital of France is Paris", "Rome"], {site: sae})
      >>> found.features[site].l0 <= 8, found.losses[site].ce_spliced > found.losses[site].ce_clean
      (True, True)
    """
    check_lm(lm)
    size, wanted = whole_number("batch_size", batch_size), flag("losses", losses)
    special = _special(lm, skip_special)
    places = placed(lm, dictionaries)
    work = list(batches(lm, corpus_rows(lm, prompts), size))
    if not any(special.tokens(batch).any() for batch in work):
        raise ArgumentError("prompts: there is no token that counts; with skip_special=, give others as well")
    if wanted:
        _check_losses(lm, work, places, special)
    shown_bar = flag("progress", progress)
    with tqdm(total=len(work), unit="batch", disable=None if shown_bar else True) as bar:
        outputs, features = _measured(lm, work, places, special, bar)
        found: dict[str, Losses] = {}
        if wanted:
            variants = variants_of(places, _means(lm, places, outputs))
            bar.total += len(work) * len(groups_of(variants))
            lost = _lost(lm, work, variants, special, bar)
            found = {place.name: _of_losses(lost, place) for place in places}
    return Scores(
        {name: of_outputs(sums) for name, sums in outputs.items()},
        {name: of_features(sums) for name, sums in features.items()},
        found,
    )


def _special(lm: LanguageModel, asked: Any) -> Special:
    if not isinstance(asked, (bool, str)) or asked not in CONVENTIONS:
        raise ArgumentError(f"skip_special={shown(asked)}: use False, True or 'saelens'")
    ids = special_ids(lm) if asked else np.zeros(0, np.int32)
    return Special(ids, **CONVENTIONS[asked])


def _check_losses(
    lm: LanguageModel, work: Sequence[Batch], places: Sequence[Placed], special: Special
) -> None:
    """Refuse, before anything runs, what cannot be spliced, or prompts that predict nothing."""
    if not any(special.followed(batch).any() for batch in work):
        raise ArgumentError("prompts: no token that counts has another after it; use losses=False")
    for place in places:
        spliced(lm, place, special)


def _measured(
    lm: LanguageModel, work: Sequence[Batch], places: Sequence[Placed], special: Special, bar: tqdm
) -> tuple[dict[str, Outputs], dict[str, Features]]:
    """Sums over all batches, by the names of results."""
    bare = [place.bare for place in places]
    sites = list(dict.fromkeys(site for place in places for site in (*place.reads, *place.writes)))
    outputs: dict[str, Outputs] = {}
    features: dict[str, Features] = {}
    for batch in work:
        counted = special.tokens(batch)
        values = captured(lm, batch, sites) if counted.any() else {}
        for place, dictionary in zip(places if values else (), bare, strict=False):
            x, y = (tuple(values[s] for s in names) for names in (place.reads, place.writes))
            written, used = measure(dictionary, x, y, counted)
            _add(outputs, place.named(place.writes), written)
            _add(features, place.named(place.reads), used)
        bar.update()
    return outputs, features


def _add(totals: dict[Any, Any], names: Iterable[Any], new: Iterable[Any]) -> None:
    for name, each in zip(names, new, strict=True):
        totals[name] = totals[name] + each if name in totals else each


def _lost(
    lm: LanguageModel, work: Sequence[Batch], variants: Sequence[Variant], special: Special, bar: tqdm
) -> dict[tuple[str, ...], Loss]:
    """Losses over all batches, by the keys of variants."""
    lost: dict[tuple[str, ...], Loss] = {}
    for group in groups_of(variants):
        lost.pop(("clean",), None)  # of the group before: the same
        for found in losses_of(lm, work, group, special):
            _add(lost, found, found.values())
            bar.update()
    return lost


def _means(lm: LanguageModel, places: Sequence[Placed], outputs: Mapping[str, Outputs]) -> dict[str, Any]:
    """Means of the sites that are written, in the shapes of their last axes."""
    return {
        site: outputs[name].target.mean.reshape([size or 0 for size in find(lm.arch, site)[0][0].sizes[2:]])
        for place in places
        for site, name in zip(place.writes, place.named(place.writes), strict=True)
    }


def _of_losses(lost: Mapping[tuple[str, ...], Loss], place: Placed) -> Losses:
    keys = {
        "clean": ("clean",),
        "spliced": ("spliced", place.name),
        "zero": ("zero", *place.writes),
        "mean": ("mean", *place.writes),
    }
    n, places = lost["clean",].n, lost["clean",].places
    ce = {f"ce_{name}": lost[key].ce / n for name, key in keys.items()}
    kl = {f"kl_{name}": lost[key].kl / places for name, key in keys.items() if name != "clean"}
    return Losses(n=n, **ce, **kl)
