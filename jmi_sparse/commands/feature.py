"""``jmi feature``: one feature: where it is active, what it writes, what it reads."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

import jmi
import jmi_sparse
from jmi import cli
from jmi.artefacts import write_json
from jmi.cli.options import Files, described, record
from jmi.errors import ArgumentError
from jmi_models.commands.model import ModelOptions
from jmi_sparse.commands.dictionaries import PROMPT, DictionaryOptions, feature_of, named
from jmi_sparse.commands.texts import Text, texts_of

if TYPE_CHECKING:
    from jmi_sparse.scoring.found import FeatureExamples

_AROUND = 6
"""Tokens shown on either side of the strongest."""


def command(
    feature: Annotated[
        str | None,
        typer.Argument(
            help="Layer and id, such as 4:182.", show_default="the most active one at the end of a prompt"
        ),
    ] = None,
    *,
    text: Text = None,
    examples: Annotated[int, typer.Option(min=1, help="How many examples to show.")] = 10,
    context: Annotated[int, typer.Option(min=2, help="Tokens of an example.")] = 32,
    top: Annotated[int, typer.Option(min=1, help="How many tokens to list that it writes and reads.")] = 10,
    given: DictionaryOptions,
    source: ModelOptions,
    files: Files,
) -> None:
    """Show where a FEATURE is active on a text, what its decoder row writes and its encoder reads.

    Tokens that it writes are those whose logits its row raises or lowers most by itself; those that it reads
    are the tokens whose embeddings its encoder answers most, which says little in later layers.
    """
    given.check()
    files.check()
    with source.loaded() as lm:
        labels, dictionaries = given.known_labels(), given.loaded(lm)
        layer, index = _strongest(lm, dictionaries) if feature is None else feature_of("FEATURE", feature)
        site, reader = _reader(dictionaries, layer)
        if index >= reader.n_features:
            raise ArgumentError(f"{layer}:{index}: this dictionary has {reader.n_features} features")
        found = jmi_sparse.examples(
            lm, texts_of(lm, text), dictionaries, features={site: [index]}, n=examples, context=context
        )[site, index]
        reads = _read(lm, site, reader, index, top)
        if files.plot is not None:
            files.draw(found.plot(f"{lm.name}: {named((layer, index), labels)}"))
        if files.output is not None:
            written = record(
                "feature",
                model=described(lm),
                dictionaries=given.described(dictionaries),
                layer=layer,
                id=index,
                label=labels.get(layer, index),
                text=str(text) if text else None,
                feature=found.to_dict(),
                reads=reads,
            )
            write_json(files.output, written)
        cli.console.say(f"{lm.name}  {named((layer, index), labels)}  at {site}")
        _print(found, reads, examples, top)


def _strongest(lm: "jmi.LanguageModel", dictionaries: Any) -> tuple[int, int]:
    """The most active feature at the last token of a prompt."""
    found = jmi_sparse.features(lm, PROMPT, dictionaries, capacity=1)
    best = int(abs(found.values[:, 0, -1, 0]).argmax())
    return found.layers[best], max(int(found.ids[best, 0, -1, 0]), 0)


def _reader(dictionaries: Any, layer: int) -> tuple[str, Any]:
    """The site and dictionary of a layer; ArgumentError where there is none."""
    from jmi_sparse.features import reading

    found = reading(dictionaries)
    if layer not in found:
        raise ArgumentError(f"layer {layer}: there are features of layers {sorted(found)}")
    return found[layer]


def _read(lm: "jmi.LanguageModel", site: str, reader: Any, index: int, top: int) -> list[dict[str, Any]]:
    """Tokens whose embeddings a feature's encoder answers most; none where it does not read the stream."""
    import numpy as np

    from jmi.model.sites import find

    embedding = lm.params.get("embed", {}).get("W_E")
    W_enc = getattr(reader, "W_enc", None)
    axes = find(lm.arch, site)[0][0].axes
    if embedding is None or W_enc is None or axes[2:] != ("d_model",) or len(W_enc) != embedding.shape[-1]:
        return []
    scores = np.asarray(embedding) @ np.asarray(W_enc[:, index])
    return [
        {"token_id": int(i), "token": lm.token_string(int(i)), "answer": float(scores[i])}
        for i in np.argsort(-scores)[:top]
    ]


def _print(found: "FeatureExamples", reads: list[dict[str, Any]], examples: int, top: int) -> None:
    if not found.top:
        cli.console.say("never active on this text; give another with --text")
        return
    cli.console.say(f"active on {found.frequency:.3%} of tokens, from {found.low:.4g} to {found.high:.4g}")
    for name, words in (("raises", found.top_logits), ("lowers", found.bottom_logits)):
        if words is not None:
            cli.console.say(f"{name}  " + " ".join(map(repr, words[:top])))
    if reads:
        cli.console.say("reads   " + " ".join(repr(one["token"]) for one in reads))
    rows = []
    for one in found.top[:examples]:
        at = int(abs(one.acts).argmax())
        before, after = one.strings[max(0, at - _AROUND) : at], one.strings[at + 1 : at + 1 + _AROUND]
        rows.append((f"{one.peak:.4g}", "".join(before) + f"[{one.strings[at]}]" + "".join(after)))
    cli.console.show_table(("activation", "strongest at [token]"), rows)
