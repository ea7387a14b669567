#!/usr/bin/env python3
# the Python clients ollama, openai and anthropic and the npm clients ollama and openai, for a local model and a peer's
import os

from lab import HERE, case, check, run_in, unload

CLIENTS = {"Python": [os.environ["LAB_SDK_PY"], os.path.join(HERE, "sdk", "clients.py")], "npm": ["node", os.path.join(HERE, "sdk", "clients.mjs")]}


def run(which, node, *more):
    r = run_in(node, CLIENTS[which] + ["tiny", "tools", "embed", *more], timeout=240)
    check(r.returncode == 0, f"{which} on {node} {' '.join(more)}: {(r.stderr.strip() or r.stdout).splitlines()[-1][:300]}")
    return int(r.stdout)


def body():
    figures = []
    unload("gpu")  # Ollama lists what is in memory under the name it was first asked by, and several have one file
    for which in CLIENTS:
        n = run(which, "gpu", "direct")
        check(n == run(which, "gpu") == run(which, "laptop"), f"{which}: not all answers were looked at")
        figures.append(f"{which} {n}")
    return f"answers directly, through the node that has the models and through one that has not, all as they must be: {', '.join(figures)}"


case(body)
