"""Dictionaries in a model: modules between its points."""
