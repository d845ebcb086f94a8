"""An environment without a network: a model that says what it is given to say, and tools that act."""

from dataclasses import dataclass, field

from subagents.agent import Reply
from subagents.prompts import Prompt

PROMPT = Prompt(model="model", max_turns=6, max_tokens=1000, system="You are it.", template="{{ task }}")


def says(*blocks, stop="tool_use"):
    """A message of these blocks."""
    return Reply({"role": "assistant", "content": list(blocks), "stop_reason": stop})


def call(name, number="", **arguments):
    return {"type": "tool_use", "id": number or f"id_{name}", "name": name, "input": arguments}


def text(words):
    return {"type": "text", "text": words}


@dataclass
class FakeWorld:
    """Replies in their order, the last one from then on; records what it was asked and which tools ran."""

    replies: list
    requests: list = field(default_factory=list)
    used: list = field(default_factory=list)
    openings: list = field(default_factory=list)
    changes: list = field(default_factory=list)

    async def begin(self, agent, opening):
        self.openings.append(opening)

    async def replace_model(self, reason):
        self.changes.append(reason)

    async def reply(self, request):
        self.requests.append(request)
        return self.replies[min(len(self.requests), len(self.replies)) - 1]

    async def use(self, tool, call):
        self.used.append(call.name)
        return await tool.run(call)

    def heard(self, turn=-1):
        """The texts that the model got in the last message of a request."""
        return [block.get("content", block.get("text", "")) for block in self.requests[turn].messages[-1]["content"]]
