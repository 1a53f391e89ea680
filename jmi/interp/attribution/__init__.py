"""Techniques that estimate by gradients what patching would do."""
