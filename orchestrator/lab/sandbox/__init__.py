"""Confines training code, by bubblewrap or by Landlock and seccomp.

Read base.py first, which is the port, then select.py, which tries what a sandbox prevents. A new one is a class with
`tier` and `wrap`, listed in select.TIERS. The lab and cli/ import this package.
"""
