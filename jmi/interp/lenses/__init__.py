"""Lenses: what the stream inside a model says when it is read as the model reads its end."""
