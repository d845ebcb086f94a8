"""Scores a model without trusting the code that trained it.

Read claims.py first, which is the arithmetic and its argument, then server.py, which serves a run over connection.py,
and audit.py, which questions the model in a second process. Only the lab imports this package.
"""
