"""Execute a session on this machine, with git, real processes and a sandbox.

Read executor.py first, which implements the loop's port, then runner.py, which runs train.py once: slots.py builds the
command, process.py and guardian.py run it, monitor.py watches it, scoring/ serves and audits it, and evaluation.py
decides its outcome. repo.py is git. Only cli/ imports the lab; the lab imports neither the policy nor the loop.
"""
