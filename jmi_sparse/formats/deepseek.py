"""SAEs of DeepSeek-R1-Distill-Llama-8B: one pickled file, ``DeepSeek-R1-Distill-<model>-SAE-l<layer>.pt``."""

import re
from pathlib import Path

from jmi_sparse.dictionaries.dictionary import Dictionary
from jmi_sparse.formats import goodfire
from jmi_sparse.formats.reading import tensors
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.formats.reading.tensors import Part

_NAME = re.compile(r"DeepSeek-R1-Distill-.+-SAE-l\d+\.pt", re.ASCII)
_LAYOUT = {
    "W_enc": Part("encoder.weight", "fi"),
    "W_dec": Part("decoder.weight", "of"),
    "b_enc": Part("encoder.bias", "f"),
    "b_dec": Part("decoder.bias", "o"),
}


def matches(file: Path) -> bool:
    """Whether a file looks like one of these; its tensors alone could be those of other SAEs."""
    if _NAME.fullmatch(file.name) is None or not file.is_file():
        return False
    names = tensors.names(file)
    return names is None or "encoder.weight" in names


def read(file: Path, asked: Asked) -> Dictionary:
    """The dictionary in a file; errors as of `jmi_sparse.load`."""
    return goodfire.linear(file, asked, _LAYOUT)
