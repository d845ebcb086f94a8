"""Estimate the tokens at the start of each agent's conversation, from experiment 1 to 1,000: they must stay flat."""

from pathlib import Path

from orchestrator.agents import briefing, packets
from orchestrator.cli.preflight import load_style
from orchestrator.core.events import Discarded, Kept
from orchestrator.core.source import diff
from prepare import profiles
from tests import synthetic

TRAIN = Path(__file__).parent.parent / "train.py"


def main() -> None:
    prompts = load_style("default", [])
    source = profiles.apply_to_script(TRAIN.read_text(), profiles.CPU)
    print("Estimated at 3.5 characters a token: system prompt and opening, the real train.py, no tools' schemas\n")
    print("| experiment | researcher | mechanic | reflector |")
    print("|---|---|---|---|")
    for number in (1, 10, 100, 1000):
        log = synthetic.log(number)
        state = log.state
        last = next(r for r in reversed(state.results) if isinstance(r.verdict, Kept | Discarded) and r.commit)
        change = diff(log.get(state.parents[last.commit.parent].source), log.get(last.commit.source))
        facts = {
            "researcher": briefing.brief_researcher(state, state.next, 1, source, ()),
            "mechanic": {**packets.pack_order(last.proposal), "source": source},
            "reflector": packets.pack_reflection(state, last, log.get(last.scores[-1].log), change, source),
        }
        cells = [synthetic.count_tokens(prompts[a].system + prompts[a].render_opening(facts[a])) for a in facts]
        print(f"| {number:,} | " + " | ".join(f"{tokens:,}" for tokens in cells) + " |")
