"""Score a model without trusting the code that trained it.

Read claims.py first, the arithmetic and why it can be trusted, then server.py, which serves a run over connection.py,
and evaluator.py, which asks the model in further processes. Only the lab imports this package.
"""
