"""The commands: they build the concrete objects and turn errors into one-line messages.

Imports everything else, and is imported by nothing. Read `main.py` first: it holds the table of commands.
"""
