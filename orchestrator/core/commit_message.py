"""Commit messages that read like lab notes."""

import textwrap

from orchestrator.core.events import Kept, Proposal
from orchestrator.core.state import Decided
from orchestrator.core.text import flatten


def write_candidate_message(number: int, proposal: Proposal) -> str:
    """Return the message of a candidate, written before it is measured."""
    return f"candidate {number}: {proposal.title}\n\n{_wrap(proposal.hypothesis)}\n\nExperiment: {number}\n"


def write_kept_message(decided: Decided) -> str:
    """Return the message of a kept change: why it was tried, the result, and trailers for machines."""
    proposal, kept = decided.proposal, decided.verdict
    assert isinstance(kept, Kept)
    metric, noun = decided.task.metric, decided.task.noun
    scores = ", ".join(f"{metric.sign * score.val_bpb:.6f}" for score in decided.scores)
    mean = f"{metric.sign * kept.mean:.6f}"
    result = f"Result: {kept.reason}. {metric.name} {mean}, {kept.gain:+.6f} better, over {noun}s: {scores}."
    trailers = [
        f"Experiment: {decided.experiment}",
        f"{metric.name.capitalize().replace('_', '-')}: {mean}",
        f"Sigma: {kept.sigma:.6f}",
        f"Hypothesis: {flatten(proposal.hypothesis)}\n",
    ]
    return "\n\n".join([proposal.title, _wrap(proposal.rationale), _wrap(result), "\n".join(trailers)])


def _wrap(text: str) -> str:
    return "\n".join(textwrap.fill(paragraph, 76) for paragraph in text.splitlines())
