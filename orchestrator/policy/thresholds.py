"""Every threshold of the policy, each with its reason."""

from orchestrator.core.events import KeepRule

BASELINE_RUNS = 1
"""Runs of the baseline if σ is known from earlier runs of the profile: it runs again at the seeds that comparisons turn
out to need. In docs/benchmarks.md a second run at once costs a night of 20 runs 5 % of its gain."""
UNKNOWN_BASELINE_RUNS = 3  # runs of the baseline if σ is not known: two would give one degree of freedom
PRIOR_DOF = 8
"""Degrees of freedom that a profile's measured σ (docs/benchmarks.md) counts for: half of its runs, since machines
differ. Profiles without a measurement have no prior."""
KEEP_RULE = KeepRule(
    bars=(0.5, 0.5),
    slope=20.0,
    two_seeds=60,
    own_noise=True,
    stacks=True,
    ahead=True,
    risk=(3.0, 10.0),
    width=0.86,
    own_dof=2,
    combines=True,
    prunes_by_gain=True,
    chronological=True,
    consistent=True,
    as_declared=True,
)
"""What new sessions record (decisions 0040, 0045, 0047, 0065, 0066, 0073 and 0075). A higher risk finds less, and a
lower one keeps more that is not better. A second seed shows what was luck of a noisy candidate, which a short night
cannot pay for."""
RISK_RISE = 0.25  # relative rise of the risk with ln(1 + ideas / BAR_IDEAS): later gains are more often luck
INTERACTION = 1.0  # standard deviation in σ by which the effect of a change may differ on a later train.py
PROMISING = 0.9  # probability of being better from which others are stacked on a candidate before it is kept
BAR_RISE = 0.07
"""Rise of the bar with ln(1 + measured ideas / BAR_IDEAS): later ideas gain less, so a false keep costs more of the
remaining gain, and false keeps add up during the night."""
BAR_IDEAS = 20
TYPICAL_SHARE = 0.22  # share of ideas that help under the prior: the mean over its regimes
MAX_BAR = 0.97  # highest bar: a nearly certain gain is kept from any researcher
WORTHWHILE = 0.5
"""An idea runs again while its expected improvement per run is at least this share of a new idea's; less than all of
it, since the prior underestimates surprises."""
LAST_WORTH = 0.9
"""The same under a rule with a risk, as a share of what the night's last idea promises: that is the one which a further
run takes away, and in a long night it promises little."""
FADING = 0.95  # decay of an idea's weight in the prior with each later one, under a rule without a risk
PRIOR_WINDOW = 200  # measured ideas that the prior is learned from: older ones have almost no weight
OUTLIERS = 0.01  # share of gains further off than their standard error implies: σ differs by script
MAX_RUNS = 8  # most runs of a candidate
T_CRITICAL = {
    **dict(enumerate((1592.0, 49.98, 17.6, 10.92, 8.36, 7.07, 6.31, 5.81, 5.46, 5.2), 1)),
    **dict(zip((12, 15, 20, 30, 60, 120, 1000), (4.85, 4.53, 4.24, 3.98, 3.75, 3.64, 3.55), strict=True)),
}
"""Standard errors beyond which a run is significantly behind, by degrees of freedom: Student's t at 1 in 5,000."""
T_90 = {1: 6.31, 2: 2.92, 3: 2.35, 4: 2.13, 5: 2.02, 6: 1.94, 8: 1.86, 10: 1.81, 15: 1.75, 20: 1.72, 40: 1.68}
"""Standard errors on either side of an interval that covers 90 %, by degrees of freedom: Student's t."""
SAME_SHAPE = 0.2
OTHER_SHAPE = 1.4
"""Prior variance of a difference at equal seeds, in σ²: for changes that keep the number of parameters and the order
of the data, and for others. Independent seeds would give 2. Measured on the cpu profile. If training time is fixed
instead of work, kernels are not deterministic, and the latter holds for all."""
PAIRING_DOF = 8  # degrees of freedom that these priors count for
SAME_STEPS = 0.02  # largest relative difference in optimizer steps between runs that see the same data
ABLATION_SHARE = 0.025
"""Share of a night's runs, just before the certificate, that may ablate the least certain keeps: none in a short
night, where a new idea is worth more."""
COMBINE_SHARE = 0.07
"""Share of a night's runs, the last for ideas, that may try near-misses together; at least one. Earlier, fewer of them
have come up."""
MAX_COMBINED = 3  # most near-misses in a combination: with more of them, more are there by luck
ABLATE_BELOW = 0.95  # probability of being better below which a keep is ablated
REVERT_BAR = 0.5  # probability of being better that a revert needs: leaving a change out needs no proof
CERTIFICATE_SHARE = 0.05
"""Share of a night's runs that certify its gain on fresh seeds, at least one pair of baseline and best. In
docs/benchmarks.md a larger share found less, with no better certificate."""
MAX_CERTIFICATE_PAIRS = 10  # most pairs of runs of the certificate: more would hardly narrow its interval
SIGMA_FLOOR = 1e-4
"""Smallest σ in bits per byte: the jitter of an H100 is a few times this, and less means that seeds were ignored. For
any other metric, whose scale is not known, it is this share of the baseline's score."""
IMPLAUSIBLE_GAIN = 0.1
"""Share of val_bpb above which a single gain is implausible: most such candidates saw what they were to predict. Other
metrics may well jump."""
IMPLAUSIBLE_RUNS = 3
"""Runs that such a jump needs, each audited at other positions. The verdict then asks the user to check the change."""
SIMPLER_LINES = 3  # lines by which a candidate must be shorter to be kept without a gain
SIMPLER_RUNS = 3  # runs that such a keep needs, with no loss on average
MEMORY_SLACK = 1.1  # multiple of the incumbent's memory that costs nothing: allocators vary by as much
MEMORY_PRICE = 1.0  # price of each doubling of memory, in σ of gain: a soft limit
MAX_MEMORY_GROWTH = 16.0  # largest multiple of memory that counts: on a GPU the script printed it
CHECKPOINTS = (0.4, 0.6, 0.8)
"""Shares of the budget at which a curve is compared: earlier ones show warm-up and schedule more than the idea."""
CURVE_ERRORS = dict(zip(CHECKPOINTS, (2.0, 1.6, 1.3), strict=True))
CURVE_SPREAD = 0.1
"""Errors in σ with which a gap at a checkpoint, in bits per byte, predicts the final gain, and their growth with the
gap. Measured on real curves (`python -m benchmarks surfaces`), those of schedules left out."""
FINISH_WORTH = 0.15
"""Share of a further run's price that finishing one must promise for what is left of it: all of it pays where gains
last, and costs up to a tenth of them where they fade, which is not known early."""
FAR_BEHIND = 15.0  # largest gap in σ that counts: no idea would explain a larger one, so that it would tell less
MISLED = 0.02  # share of ideas whose curves tell nothing
BLIND = 0.03
"""Probability that all curves of a session tell nothing, before it has any: a few finished runs show that."""
CALIBRATION_RUNS = 10  # finished candidates that calibrate pruning by significance; with fewer there is none
CALIBRATION_RANGE = 10.0  # only runs that end within this many σ of the incumbent calibrate it
CONTROL_RUN_EVERY = 5  # one first run in this many is not pruned, to measure how often that would be wrong
GAINFUL_CONTROL_EVERY = 10
"""The same where runs are pruned by gain: more are then pruned, so that a control run costs more and tells as much."""
MAX_FALSE_PRUNES = 0.05  # largest share of prunable control runs that ended well; above it, pruning stops
STALL = 8  # experiments without a keep after which the briefing says so
SURPRISE = 5.0
"""Standard errors between the effect that the researcher expected and the measured one from which that is a surprise,
a reason to rewrite the notebook: it is rare by luck, and by a bad guess of a small effect."""
CONSOLIDATION_GAP = 6
"""Closed experiments between two consolidations at least: a conversation of high effort costs about as much as one."""
CLEAR = 2.0
"""Standard errors of an effect that a post-mortem may call one: a change of nothing shows a loss of this size as rarely
as it is kept. Of one standard error, one in six would."""
MAX_REPAIRS = 2  # repairs of a crashed candidate, in crews that can repair
NEAR_MISS = 0.5  # standard errors of gain above which a discard is a near-miss, worth combining with another
CENTAUR_SHARE = 3  # one proposal in this many is the optimizer's; more did worse in published trials
MAX_FRUITLESS = 6
"""Rounds in a row, per slot, that may lead to no run (no answer, a repeat, no candidate). Then the optimizer takes
over, and after as many rounds of its own the night ends: every round costs money."""
FRUITLESS_PAUSE = 15.0  # seconds of pause after two rounds per slot without a run; each further one doubles them
MAX_ABORTED = 5
"""Runs in a row, for each slot, lost to the machine after which the session ends: over four minutes of pauses have not
helped."""
FINISH_MARGIN = 1.15  # a run starts only if at least its expected length times this factor is left
REPEAT_EXPIRY = 20  # experiments after which the same change to the same parent may be proposed again
