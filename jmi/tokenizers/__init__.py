"""Text to tokens and back, through a Hugging Face ``tokenizer.json`` or a vocabulary of RWKV."""

from jmi import lazy

lazy.attach(__name__)
