"""Run training code once, with real processes and a sandbox, and score what comes of it.

Read runner.py first, which runs a candidate and decides the outcome: slots.py builds the command, process.py and
guardian.py run it, monitor.py watches it, and scoring/ serves and audits it. reported.py runs a command of the user's
own. Only cli/ and cluster.py import the lab; the lab imports neither the policy nor the loop.
"""
