"""The commands: the one place that builds concrete things, and the one that turns errors into a line.

Imports everything else, and is imported by nothing. Read `main.py` first: it holds the table of commands.
"""
