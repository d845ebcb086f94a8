"""Write the files beside a session: report.html, results.tsv, ledger.parquet, and TensorBoard's.

Read `files.py` (which file is written when), then `page.py` with its template `page.html`.
"""
