"""``jmi sae``: what a dictionary is, and how good it is on a text."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

import jmi_sparse
from jmi import cli
from jmi.artefacts import write_json
from jmi.cli.options import Files, described, record
from jmi.errors import ArgumentError
from jmi_models.commands.model import ModelOptions
from jmi_sparse.commands.dictionaries import NEEDED, DictionaryOptions
from jmi_sparse.commands.texts import Text, texts_of

if TYPE_CHECKING:
    from jmi_sparse.scoring.scored import Scores


def command(
    dictionary: Annotated[str | None, typer.Argument(help="Folder, file or name of dictionaries.")] = None,
    *,
    hook: Annotated[
        str | None, typer.Option(help="Site that is read, where the files do not say it.")
    ] = None,
    text: Text = None,
    losses: Annotated[
        bool, typer.Option("--losses/--no-losses", help="Run the model with the dictionary in it.")
    ] = True,
    skip_special: Annotated[
        bool, typer.Option("--skip-special", help="Leave special tokens as they are, and do not count them.")
    ] = False,
    source: ModelOptions,
    files: Files,
) -> None:
    """Say what DICTIONARY is, and score it on a text.

    FVU is the share of variance that it misses, by SAELens's definition; the JSON has three more. Loss
    recovered is 1 where the model loses nothing with the reconstruction in place of the site, and 0 where it
    loses as much as with zeros there.
    """
    if dictionary is None:
        raise ArgumentError(NEEDED.replace("--dictionaries is needed", "DICTIONARY is needed"))
    files.check()
    given = DictionaryOptions([dictionary], hook)
    with source.loaded() as lm:
        loaded, texts = given.loaded(lm), texts_of(lm, text)
        each = loaded if isinstance(loaded, dict) else {loaded.hook_in: loaded}
        for one in each.values():
            cli.console.say(repr(one))
        found = jmi_sparse.score(lm, texts, loaded, losses=losses, skip_special=skip_special)
        if files.plot is not None:
            files.draw(found.plot(f"{lm.name}: {dictionary}"))
        if files.output is not None:
            written = record(
                "sae",
                model=described(lm),
                dictionaries=given.described(loaded),
                text=str(text) if text else None,
                options={"losses": losses, "skip_special": skip_special},
                prompts=len(texts),
                scores=found.to_dict(),
            )
            write_json(files.output, written)
        cli.console.say(f"{lm.name}, {len(texts)} prompts")
        _print(found)


def _print(found: "Scores") -> None:
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys((*found.features, *found.outputs, *found.losses)):
        used, written, lost = found.features.get(name), found.outputs.get(name), found.losses.get(name)
        cells: list[Any] = [name]
        cells += (
            ["", "", ""]
            if used is None
            else [f"{used.l0:.4g}", f"{used.alive:.1%}", str(int(used.dense.sum()))]
        )
        cells += ["", ""] if written is None else [f"{written.fvu_saelens:.4g}", f"{written.cosine:.4f}"]
        if lost is None:
            cells += ["", "", ""]
        else:
            cells += [f"{lost.ce_clean:.4f}", f"{lost.ce_spliced:.4f}", f"{lost.loss_recovered_zero:.1%}"]
        rows.append(tuple(cells))
    columns = ("", "L0", "alive", "dense", "FVU", "cosine", "loss", "with it", "recovered")
    cli.console.show_table(columns, rows, left=1)
