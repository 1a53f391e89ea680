"""Measures of SAEBench on activations, features and labels that you give: pure functions, one file each."""

from jmi import lazy

lazy.attach(__name__)
