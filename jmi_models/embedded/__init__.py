"""Models shipped inside the package: small enough to load and run offline in seconds.

`MODELS` maps a model's name to the folder that holds its files. "atlas" is a Llama-style
decoder of about two million parameters, trained by `python -m jmi_models.embedded.train` on
generated text in which factual recall, indirect objects, greater-than and induction can be
studied.
"""

from pathlib import Path

MODELS = {"atlas": Path(__file__).parent / "atlas"}
"""Folder of every shipped model, by name."""
