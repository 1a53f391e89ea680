"""Edges between parts of a model: scores, circuits, and how faithful they are."""
