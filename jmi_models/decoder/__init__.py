"""The generic decoder-only transformer."""
