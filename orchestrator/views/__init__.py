"""Show a session: terminal, musings, notifications, comparison and report.

All are derived from the log, and can be deleted and rebuilt. Imports `core`, `policy` and `session`; imported by `cli`.
Read `observers.py` first: it calls the others as events arrive. Texts and pages are templates in `templates/`.
"""
