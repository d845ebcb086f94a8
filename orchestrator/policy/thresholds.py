BASELINE_RUNS = 3
"""The fewest that give a spread at all; confirmations of candidates sharpen it later."""
PRIOR_DOF = 8
"""What a profile's measured σ (docs/benchmarks.md) counts for: half of the runs that went into it, since machines
differ. Profiles without a measurement start from nothing."""
FUTILITY_BOUNDS = (0.8, 1.4, 1.8, 2.1, 2.4, 2.6, 2.8)
"""A candidate is given up when its gain is below this many standard errors after its 1st, 2nd, … seed. Tuned by
simulation: a change that does nothing costs 1.2 runs, and a true gain of 3σ is given up in 3 of 100."""
MAX_RUNS = len(FUTILITY_BOUNDS) + 1
MIN_RUNS = 2
"""Nothing is kept on one seed: the first run is the one that luck has chosen."""
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
"""The H100's own jitter is a few of these; a smaller σ means that seeds were ignored."""
IMPLAUSIBLE_GAIN = 0.1
"""Share of val_bpb that no honest change gains at once: most that seemed to saw what they were to predict."""
IMPLAUSIBLE_RUNS = 3
"""Seeds that such a jump needs; each is audited at other places. The verdict then asks the user to have a look."""
SIMPLER_LINES = 3
"""Within the noise, a candidate shorter by this many lines may be kept: less code is a result, too."""
SIMPLER_RUNS = 3
"""Seeds that such a keep needs: it claims that nothing was lost."""
MEMORY_SLACK = 1.1
"""Times the incumbent's memory that are free: less is within what allocators do."""
MEMORY_PRICE = 1.0
"""σ of gain that each doubling of memory must pay for before the rest counts: a soft limit, as upstream asks for."""
MAX_MEMORY_GROWTH = 16.0
"""Times the memory that are believed: on a GPU it is what a script printed."""
CHECKPOINTS = (0.4, 0.6, 0.8)
"""Shares of the budget at which a curve is compared: before that, warm-up and schedules say more than the idea."""
CALIBRATION_RUNS = 10
"""Finished candidates of this session from which its curves foretell anything; until then no run is ended early."""
CALIBRATION_RANGE = 10.0
"""σ within which a candidate must have ended to take part: who is far off says nothing about where the border is."""
CONTROL_RUN_EVERY = 5
"""Every so many-th candidate runs to its end even if it is hopeless, to show how often that is wrong."""
MAX_FALSE_PRUNES = 0.05
"""Share of reprieved runs that may prove as good as the best before early ends are given up for the night."""
STALL = 8
"""Experiments without a keep after which the researcher is asked for another family."""
NEAR_MISS = 1.0
"""Standard errors of gain from which a discarded candidate counts as a near-miss, worth combining with another."""
CENTAUR_SHARE = 3
"""In a centaur crew every third proposal is the optimizer's own; a larger share did worse in published trials."""
LOOKAHEAD = 1
"""Candidates ready behind each one that trains: enough that no slot waits, few enough that none goes stale."""
MAX_UNANSWERED = 3
"""Rounds in a row without an answer from the researcher after which the night ends."""
MAX_ABORTED = 3
"""Runs in a row lost to the machine after which it is the machine that needs attention."""
FINISH_MARGIN = 1.15
"""Nothing is started with less time left than its expected length times this."""
REPEAT_EXPIRY = 20
"""A knob turned the same way from the same base may be turned so again after this many other experiments."""
