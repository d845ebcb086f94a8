"""Confine training code by bubblewrap, or by Landlock with seccomp.

Read base.py first, which defines the port, then select.py, which tests what each sandbox prevents. A new sandbox is a
class with `tier` and `wrap`, listed in select.TIERS. The lab, cluster.py and cli/ import this package.
"""
