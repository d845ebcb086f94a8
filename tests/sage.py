"""A program that answers as `claude -p` does, or in bare JSON, and plays the scripted server's agents.

`python tests/sage.py HOW`; HOW is answer (bare JSON, with talk around it), envelope (as Claude Code prints it),
mute, sleep (with a child that sleeps, too). `SAGE_LOG` names a file for what it was given.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.scripted import Scripted


def main():
    how, *words = sys.argv[1:]
    prompt = sys.stdin.read()
    if log := os.environ.get("SAGE_LOG"):
        seen = [path.name for path in Path().iterdir()]
        given = {"words": words, "prompt": prompt, "environment": dict(os.environ), "folder": seen}
        with Path(log).open("a") as file:
            file.write(json.dumps(given) + "\n")
    if how == "sleep":
        child = subprocess.Popen(["sleep", "600"])
        Path(log).write_text(json.dumps([os.getpid(), child.pid]))
        time.sleep(600)
    if how == "mute":
        print("I would rather not say.")
        return
    names = re.findall(r"^## (\w+)$", prompt, re.MULTILINE)
    told = prompt.split("# You are told\n", 1)[1].partition("\n# You called")[0]
    turns = prompt.count("\n# You called") + 1
    messages = [{"content": [{"type": "text", "text": told}]}] * turns
    request = {"tools": [{"name": name} for name in names], "messages": messages, "system": "", "model": "sage"}
    blocks = Scripted(("crash",)).message(request)["content"]
    calls = [{"tool": block["name"], "input": block["input"]} for block in blocks if block["type"] == "tool_use"]
    if how == "answer":
        print(f"Here you are:\n```json\n{json.dumps({'calls': calls})}\n```")
        return
    usage = {
        "input_tokens": 100,
        "cache_read_input_tokens": 1000,
        "cache_creation_input_tokens": 10,
        "output_tokens": 50,
    }
    envelope = {"type": "result", "subtype": "success", "is_error": False, "result": "", "total_cost_usd": 0.02}
    print(json.dumps(envelope | {"usage": usage, "structured_output": {"calls": calls}, "stop_reason": "end_turn"}))


if __name__ == "__main__":
    main()
