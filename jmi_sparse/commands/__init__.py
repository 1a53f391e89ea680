"""Commands about dictionaries: one sub-command of ``jmi``, one file."""
