"""The ``jmi`` command, and what the commands of every package share.

A command is a function that a package names under ``[project.entry-points."jmi.commands"]``. Its module
imports JAX and what needs JAX when the command runs, not before: help must answer at once.
"""

from jmi import lazy

lazy.attach(__name__)
