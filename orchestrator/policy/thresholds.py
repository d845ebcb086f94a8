"""Every threshold of the policy, each with its reason."""

BASELINE_RUNS = 2
"""Runs of the baseline where σ is known from earlier runs of the profile: seeds that later comparisons use, too."""
UNKNOWN_BASELINE_RUNS = 3
"""Runs of the baseline where σ is not known: two would give one degree of freedom."""
PRIOR_DOF = 8
"""Degrees of freedom that a profile's measured σ (docs/benchmarks.md) counts for: half of the runs behind it, since
machines differ. Profiles without a measurement start from nothing."""
BAR = 0.7
"""Probability of being better that a keep needs. By the tournament in docs/benchmarks.md: a higher bar finds less, a
lower one keeps more that is not better."""
BAR_SLOPE = 3.0
"""Rise of the bar for each unit by which the share of ideas that help falls below TYPICAL_SHARE."""
BAR_RISE = 0.07
"""Rise of the bar with the natural logarithm of one plus the measured ideas over BAR_IDEAS: later ideas gain less, so
that a false keep costs more of what is left to find, and their number grows with the night."""
BAR_IDEAS = 20
"""Measured ideas from which on that is felt."""
TYPICAL_SHARE = 0.22
"""Share of ideas that help before anything is known: the mean over the regimes of the prior."""
MAX_BAR = 0.97
"""Highest bar: a certain gain is kept whatever the researcher."""
WORTHWHILE = 0.5
"""An idea runs once more while that promises this share of what a new idea promises. The prior underestimates
surprises, so less than all of it is required."""
FADING = 0.95
"""Weight of a measured idea in the prior of the one after it: the last twenty say how the night goes now."""
PRIOR_WINDOW = 200
"""Measured ideas that the prior is learned from: older ones weigh next to nothing."""
OUTLIERS = 0.01
"""Share of measured gains whose error exceeds what their standard error implies: σ differs from script to script."""
MAX_RUNS = 8
"""Runs that a candidate gets at most."""
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
"""Standard errors beyond which a run is pruned, by degrees of freedom: Student's t at 1 in 5,000, one-sided."""
T_90 = {1: 6.31, 2: 2.92, 3: 2.35, 4: 2.13, 5: 2.02, 6: 1.94, 8: 1.86, 10: 1.81, 15: 1.75, 20: 1.72, 40: 1.68}
"""Standard errors to either side of an interval that covers 90 %, by degrees of freedom: Student's t."""
SAME_SHAPE = 0.2
OTHER_SHAPE = 1.4
"""Variance of a difference at equal seeds, in σ², before the session has measured it: for changes that leave the
number of parameters and the order of the data alone, and for others. Independent seeds would give 2. Measured on the
cpu profile; where training time is fixed instead of work, kernels are not deterministic and the latter holds for all.
"""
PAIRING_DOF = 8
"""Degrees of freedom that these count for."""
SAME_STEPS = 0.02
"""Largest relative difference in optimizer steps between runs that see the same data."""
ABLATION_SHARE = 0.025
"""Share of a night's runs in which, before the certificate, the least certain keeps are taken back on trial: none of a
short night, where a new idea is worth more."""
ABLATE_BELOW = 0.95
"""Probability of being better below which a keep is tried without."""
REVERT_BAR = 0.5
"""Probability that the night's best is better without a change from which on it is taken back: no change needs a proof
to be absent."""
CERTIFICATE_SHARE = 0.05
"""Share of a night's runs that certify its gain on fresh seeds, at least one of the baseline and one of the best: in
the tournament, more of them found less and said it no better."""
MAX_CERTIFICATE_PAIRS = 10
"""Pairs of runs after which the certificate is as sharp as anybody needs."""
SIGMA_FLOOR = 1e-4
"""Smallest σ in bits per byte: the H100's own jitter is a few of these, and less means that seeds were ignored. Of any
other metric, whose scale is not known, it is this share of the baseline's score."""
IMPLAUSIBLE_GAIN = 0.1
"""Share of val_bpb that is hard to gain at once: most candidates that seemed to saw what they were to predict. Other
metrics may well jump."""
IMPLAUSIBLE_RUNS = 3
"""Runs that such a jump needs, each audited at other positions. The verdict then asks the user to have a look."""
SIMPLER_LINES = 3
"""Lines by which a candidate must be shorter to be kept without a gain: less code is a result, too."""
SIMPLER_RUNS = 3
"""Runs that such a keep needs, and in which it must not have lost anything on average."""
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
NEAR_MISS = 0.5
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
