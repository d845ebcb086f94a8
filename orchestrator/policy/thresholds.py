"""Every threshold of the policy, each with its reason."""

BASELINE_RUNS = 3
"""Runs of the baseline: the fewest that give a variance at all; later runs of candidates sharpen it."""
PRIOR_DOF = 8
"""Degrees of freedom that a profile's measured σ (docs/benchmarks.md) counts for: half of the runs behind it, since
machines differ. Profiles without a measurement start from nothing."""
FUTILITY_BOUNDS = (0.8, 1.4, 1.8, 2.1, 2.4, 2.6, 2.8)
"""Standard errors of gain below which a candidate is given up after its 1st, 2nd, … seed. Tuned by simulation: a change
that does nothing costs 1.2 runs, and a true gain of 3σ is given up in 3 of 100."""
MAX_RUNS = len(FUTILITY_BOUNDS) + 1
"""Runs that a candidate gets at most."""
MIN_RUNS = 2
"""Runs that a keep needs at least: the first run is the one that luck has chosen."""
T_CRITICAL = {
    **dict(enumerate((1592.0, 49.98, 17.6, 10.92, 8.36, 7.07, 6.31, 5.81, 5.46, 5.2), 1)),
    12: 4.85,
    15: 4.53,
    20: 4.24,
    30: 3.98,
    60: 3.75,
    120: 3.64,
    1000: 3.55,
}
"""Standard errors of gain that a keep needs, by the degrees of freedom of σ: Student's t at 1 in 5,000, one-sided.
The less is known of the noise, the more is asked; a night of 200 no-ops then keeps none."""
SIGMA_FLOOR = 1e-4
"""Smallest σ in bits per byte: the H100's own jitter is a few of these, and less means that seeds were ignored."""
IMPLAUSIBLE_GAIN = 0.1
"""Share of val_bpb that is hard to gain at once: most candidates that seemed to saw what they were to predict."""
IMPLAUSIBLE_RUNS = 3
"""Runs that such a jump needs, each audited at other positions. The verdict then asks the user to have a look."""
SIMPLER_LINES = 3
"""Lines by which a candidate must be shorter to be kept within the noise: less code is a result, too."""
SIMPLER_RUNS = 3
"""Runs that such a keep needs: it claims that nothing was lost."""
MEMORY_SLACK = 1.1
"""Multiple of the incumbent's memory that is free of charge: allocators vary by as much."""
MEMORY_PRICE = 1.0
"""σ of gain that each doubling of memory costs: a soft limit, as upstream asks for."""
MAX_MEMORY_GROWTH = 16.0
"""Largest multiple of memory that is believed: on a GPU it is what a script printed."""
CHECKPOINTS = (0.4, 0.6, 0.8)
"""Shares of the budget at which a curve is compared: earlier, warm-up and schedules say more than the idea."""
CALIBRATION_RUNS = 10
"""Finished candidates of this session that calibrate pruning; with fewer, no run is pruned."""
CALIBRATION_RANGE = 10.0
"""Only runs that finished within this many σ of the incumbent calibrate the pruning threshold."""
CONTROL_RUN_EVERY = 5
"""One candidate in this many is a control run: it finishes even where it would be pruned, to measure false prunes."""
MAX_FALSE_PRUNES = 0.05
"""Share of pruned control runs that may end as good as the incumbent before pruning is given up for the session."""
STALL = 8
"""Experiments without a keep after which the researcher is asked for another family."""
MAX_REPAIRS = 2
"""Repairs of a crashed candidate, in crews that can repair."""
NEAR_MISS = 1.0
"""Standard errors of gain from which a discarded candidate counts as a near-miss, worth combining with another."""
CENTAUR_SHARE = 3
"""In a centaur crew one proposal in this many is the optimizer's; a larger share did worse in published trials."""
LOOKAHEAD = 1
"""Candidates ready behind each one that trains: enough that no slot waits, few enough that none goes stale."""
MAX_FRUITLESS = 6
"""Rounds in a row, for each slot, that may lead to no run (no answer, a repeat, no candidate). Then the optimizer takes
over, and after as many rounds of its own the night ends: every round is paid for, and the reason has been told."""
FRUITLESS_PAUSE = 15.0
"""Seconds before the researcher is asked a third time; they double with each further round that leads to no run."""
MAX_ABORTED = 3
"""Runs in a row lost to the machine after which the session ends: the machine needs attention."""
FINISH_MARGIN = 1.15
"""A run is started only if its expected length times this is left."""
REPEAT_EXPIRY = 20
"""Experiments after which a constant may be turned the same way from the same parent again."""
