"""Weights: where they come from, how they are stored, and where they are put."""
