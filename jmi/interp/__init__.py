"""Techniques: one file each, plain functions over a LanguageModel, or an architecture and its parameters."""

from jmi import lazy

lazy.attach(__name__)
