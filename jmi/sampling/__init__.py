"""Sampling: what is done to logits before a token is chosen of them."""
