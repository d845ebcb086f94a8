"""OpenTelemetry spans around agents and tools, named as the GenAI conventions name them.

The SDK adds a span for each request. Without a collector spans cost nothing.
"""

from collections.abc import Generator
from contextlib import contextmanager

from opentelemetry import trace

TRACER = trace.get_tracer("nightshift")


@contextmanager
def trace_agent(name: str, model: str) -> Generator[None]:
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name, "gen_ai.request.model": model}
    with TRACER.start_as_current_span(f"invoke_agent {name}", attributes=attributes):
        yield


@contextmanager
def trace_tool(name: str, call: str) -> Generator[None]:
    attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name, "gen_ai.tool.call.id": call}
    with TRACER.start_as_current_span(f"execute_tool {name}", attributes=attributes):
        yield
