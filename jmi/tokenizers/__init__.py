"""Text to tokens and back, through a Hugging Face ``tokenizer.json`` or a vocabulary of RWKV."""

from jmi.tokenizers.folder import VOCABULARIES
from jmi.tokenizers.tokenizer import Batch, Encoding, Tokenizer
