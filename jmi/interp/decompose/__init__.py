"""Techniques that take a run, or the weights, apart."""
