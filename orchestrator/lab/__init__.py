"""The lab: executes a session on this machine, with git, real processes and a sandbox.

Read executor.py first, which is the port that the loop uses, then runner.py, which runs train.py once: slots.py
builds its command, process.py and guardian.py run it, monitor.py monitors it, scoring/ serves and audits it, and
evaluation.py decides what came of it. repo.py is git. Only cli/ imports the lab; the lab knows no policy and no loop.
"""
