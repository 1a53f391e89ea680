"""Commands about models and on them: one sub-command of ``jmi``, one file."""
