"""Architectures and loading: Hugging Face folders, the hub, the embedded model."""

from jmi import lazy

lazy.attach(__name__)
