"""The options of every command that reads dictionaries, and how features and words are named."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jmi.errors import ArgumentError, printable

if TYPE_CHECKING:
    from jmi.lm import LanguageModel
    from jmi_sparse.scoring.labels import Labels

PROMPT = "The capital of France is"
WORD = " Tokyo"
"""The prompt that commands run, and the word that they follow, where none is given."""

NEEDED = (
    "--dictionaries is needed: a folder or file of a dictionary, or a name that jmi_sparse.releases() lists"
)


@dataclasses.dataclass(frozen=True)
class DictionaryOptions:
    """Which dictionaries, and what is known of their features."""

    dictionaries: Annotated[
        list[str] | None, typer.Option(help="Folder, file or name of dictionaries (repeatable).")
    ] = None
    hook: Annotated[str | None, typer.Option(help="Site that is read, where the files do not say it.")] = None
    labels: Annotated[
        Path | None, typer.Option(help="Labels of features: .json, .jsonl or .csv, or Neuronpedia's export.")
    ] = None

    def check(self) -> None:
        """Raise ArgumentError where no dictionary is named: before the model is loaded."""
        if not self.dictionaries:
            raise ArgumentError(NEEDED)
        if self.hook is not None and len(self.dictionaries) > 1:
            raise ArgumentError("--hook says where one dictionary reads; give one --dictionaries with it")

    def loaded(self, lm: "LanguageModel") -> Any:
        """A set or cross-layer transcoder that stands alone, else ``{site: dictionary}``.

        Raises:
          ArgumentError: dictionaries that do not say where they read, or two of one site.
        """
        import jmi_sparse
        from jmi.model.sites import split

        found: dict[str, Any] = {}
        for source in self.dictionaries or ():
            one = jmi_sparse.load(source, hook=self.hook, dtype=lm.dtype)
            if len(self.dictionaries or ()) == 1 and hasattr(one, "layers"):
                return one
            site = one.hook_in
            if not isinstance(site, str):
                raise ArgumentError(f"{source}: its files do not say where it reads; give --hook")
            layers = {split(name)[1] for name in found}
            if site in found or split(site)[1] in layers or (found and "*" in {*layers, split(site)[1]}):
                raise ArgumentError(
                    f"{source}: features are named layer:id, so give one dictionary of a layer"
                )
            found[site] = one
        return found

    def known_labels(self) -> "Labels":
        """Labels of features; none where no file is named."""
        import jmi_sparse

        return jmi_sparse.Labels({}) if self.labels is None else jmi_sparse.labels(self.labels)

    def described(self, dictionaries: Any) -> dict[str, Any]:
        """As plain data, for a record."""
        each = dictionaries if isinstance(dictionaries, dict) else {dictionaries.hook_in: dictionaries}
        return {
            "sources": list(self.dictionaries or ()),
            "labels": None if self.labels is None else str(self.labels),
            "loaded": {site: repr(one) for site, one in each.items()},
        }


def feature_of(option: str, text: str) -> tuple[int, int]:
    """``22:10243`` or ``L22:10243`` as layer and id; ArgumentError for anything else."""
    match = re.fullmatch(r"L?(\d{1,4}):(\d{1,9})", text.strip())
    if match is None:
        raise ArgumentError(f"{option} {printable(text)}: give layer and id, such as 22:10243")
    return int(match[1]), int(match[2])


def features_of(option: str, texts: Sequence[str] | None) -> list[tuple[int, int]]:
    """Each of them by `feature_of`."""
    return [feature_of(option, text) for text in texts or ()]


def pointing_at(lm: "LanguageModel", dictionaries: Any, token: int) -> tuple[int, int]:
    """The feature whose decoder row points most at a token: what stands in where none is named."""
    import jmi_sparse

    check_written(lm, dictionaries)
    (best,) = jmi_sparse.best_rows(dictionaries, direction_of(lm, token), k=1)
    return best.layer, best.id


def check_written(lm: "LanguageModel", dictionaries: Any) -> None:
    """Raise ArgumentError where decoder rows are no vectors of the stream, which tokens are read from."""
    from jmi_sparse.decoders.rows import check_stream, decoders_of

    check_stream(lm.arch, decoders_of(dictionaries))


def named(feature: tuple[int, int], labels: "Labels") -> str:
    """``4:104  capitals of countries``."""
    text = labels.get(*feature)
    return f"{feature[0]}:{feature[1]}" + (f"  {text}" if text else "")


def vocabulary_of(lm: "LanguageModel") -> Any:
    """What gives each token's logit, ``[vocab, d]``; ArgumentError of a model without an unembedding."""
    from jmi_sparse.scoring.logits import unembedding

    weights = unembedding(lm)
    if weights is None:
        raise ArgumentError(f"{lm.name}: this model has no unembedding to take a word's direction from")
    return weights.T


def direction_of(lm: "LanguageModel", token: int) -> Any:
    """The row ``[d]`` of `vocabulary_of` of one token."""
    return vocabulary_of(lm)[token]
