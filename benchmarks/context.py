"""Tokens at the start of each agent's conversation, from experiment 1 to 1,000: flat, or a night grows dear."""

from pathlib import Path

from orchestrator import briefing, triage
from orchestrator.cli import prompts_of
from orchestrator.events import Discarded, Kept
from orchestrator.source import diff
from orchestrator.state import Candidate, Decided
from prepare import profiles
from tests import synthetic

TRAIN = Path(__file__).parent.parent / "train.py"


def main() -> None:
    prompts = prompts_of("default", [])
    source = profiles.fit(TRAIN.read_text(), "cpu")
    print("Estimated at 3.5 characters a token: system prompt and opening, the real train.py, no tools' schemas\n")
    print("| experiment | researcher | mechanic | reflector |")
    print("|---|---|---|---|")
    for number in (1, 10, 100, 1000):
        log = synthetic.log(number)
        state = log.state
        last = next(f for f in reversed(state.findings) if isinstance(f.verdict, Kept | Discarded) and f.made)
        decided = Decided(Candidate(last.proposal, last.made, last.scores), last.verdict, None, last.against)
        change = diff(log.get(state.bases[last.made.base].source), log.get(last.made.source))
        facts = {
            "researcher": briefing.researcher(state, state.next, 1, source, ()),
            "mechanic": {**triage.order(last.proposal), "source": source},
            "reflector": triage.reflection(state, decided, log.get(last.scores[-1].log), change),
        }
        cells = [briefing.tokens(prompts[a].system + prompts[a].opening(facts[a])) for a in facts]
        print(f"| {number:,} | " + " | ".join(f"{tokens:,}" for tokens in cells) + " |")
