"""The commands: the one place that builds concrete things, and the one that turns errors into a line.

Read main.py first: it holds the table of commands. Nothing else imports from here.
"""
