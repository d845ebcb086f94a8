"""What a model, its server or its program may answer, however odd: a failed answer at worst, not the end of a night."""

from orchestrator.core import events as ev
from orchestrator.session.store import Session
from subagents.prompts import LONGEST
from tests.conversations import text
from tests.simulated import SOURCE
from tests.test_fruitless import Player, list_events, night


class Odd(Player):
    """A model whose second reply is changed by a function."""

    def __init__(self, change, script=("turn",)):
        super().__init__(script)
        self.change = change

    async def reply(self, request, on_wait):
        reply = await super().reply(request, on_wait)
        return self.change(reply) if len(self.asked) == 2 else reply


def lengthen(reply):
    return type(reply)(reply.message | {"content": [text("x" * (9 << 20)), *reply.content]}, usd=0.5)


def test_an_answer_that_is_too_long_to_be_read_again_is_a_failed_one_and_is_paid_for(tmp_path):
    session = night(tmp_path, Odd(lengthen), experiments=2)
    session.close()

    again = Session(session.path)
    assert len(again.records) == len(session.records)
    assert "longer than 8 MiB" in list_events(again, ev.ModelReplied)[1].message["error"]
    assert again.state.usd > 0.5
    assert len([result for result in again.state.tried if result.scores]) == 2


def test_an_edit_of_a_script_that_is_too_long_to_be_shown_is_abandoned(tmp_path):
    session = night(tmp_path, Player(["crash", "turn"]), source=f"{SOURCE}# {'x' * LONGEST}", experiments=2)

    assert "a prompt cannot be rendered: it is longer than" in list_events(session, ev.Abandoned)[0].reason
    assert any(result.scores for result in session.state.tried)
