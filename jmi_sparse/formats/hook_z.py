"""SAEs of attention, all heads in one vector: ``<name>_Hcat_z<more>.pt`` with ``..._cfg.json`` beside it."""

import re
from pathlib import Path
from typing import Any

from jmi.errors import ConfigError
from jmi.reading import read_object
from jmi_sparse.dictionaries.activations import ReLU
from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.formats.reading import fields, paths, tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.fields import Fields
from jmi_sparse.formats.reading.tensors import Part

_FILE = re.compile(r".+_Hcat_z(_.+)?\.pt")
_LAYOUT = {
    "W_enc": Part("W_enc", "if"),
    "W_dec": Part("W_dec", "fo"),
    "b_enc": Part("b_enc", "f"),
    "b_dec": Part("b_dec", "o"),
}


def matches(file: Path) -> bool:
    """Whether a file looks like one of these."""
    return _FILE.fullmatch(file.name) is not None and file.is_file()


def read(file: Path, asked: Asked) -> Dictionary:
    """The dictionary in a file; errors as of `jmi_sparse.load`."""
    fields.refuse(asked, "k", "norm_factor")
    config, problems = file.with_name(f"{file.stem}_cfg.json"), list[str]()
    find = Fields(read_object(config, ConfigError), problems)
    sizes = {"i": find.whole("act_size"), "f": find.whole("dict_size")}
    hook = asked.hook or find.text(find.given, "act_name")
    if problems:
        raise ConfigError(f"{config.name}: " + "; ".join(problems))
    arrays = tensors.parts(file.name, tensors.headers(file), _LAYOUT, square=True, sizes=sizes)
    held: dict[str, Any] = tensors.cast(arrays, asked.dtype, file.name)
    return Dictionary(
        activation=ReLU(),
        apply_b_dec_to_input=True,
        **held,
        **paths.sites(hook),
        metadata=fields.about(model_name=find.given.get("model_name")),
    )
