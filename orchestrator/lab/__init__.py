"""Execute a session on this machine, with git, real processes and a sandbox.

Read executor.py first, which implements the loop's port, then runner.py, which runs train.py once and decides the
outcome: slots.py builds the command, process.py and guardian.py run it, monitor.py watches it, and scoring/ serves and
audits it. repo.py is git. Only cli/ imports the lab; the lab imports neither the policy nor the loop.
"""
