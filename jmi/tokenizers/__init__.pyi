"""The names that ``jmi.tokenizers`` hands on: the only list of them (`jmi.lazy`)."""

from . import (
    chat as chat,
    folder as folder,
    limits as limits,
    spaces as spaces,
    templates as templates,
    world as world,
)
from jmi.tokenizers.folder import VOCABULARIES as VOCABULARIES
from jmi.tokenizers.tokenizer import Batch as Batch, Encoding as Encoding, Tokenizer as Tokenizer
