"""The files beside a session: report.html, results.tsv, ledger.parquet, and event files for TensorBoard.

Read `files.py` (which file is written when), then `page.py` with its template `page.html`.
"""
