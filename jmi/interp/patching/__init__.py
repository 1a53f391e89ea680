"""Techniques that put other activations, or none, in the place of a run's own."""
