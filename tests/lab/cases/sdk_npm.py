#!/usr/bin/env python3
# the npm clients ollama and openai, streaming and not, for a local model and a peer's
import os

from lab import HERE, case, check, run_in

CLIENTS = ["node", os.path.join(HERE, "sdk", "clients.mjs")]


def run(node, *more):
    r = run_in(node, CLIENTS + ["tiny", "tools", "embed", *more], timeout=120)
    check(r.returncode == 0, f"on {node} {' '.join(more)}: {(r.stderr.strip() or r.stdout).splitlines()[-1][:300]}")
    return int(r.stdout)


def body():
    n = run("gpu", "direct")
    check(n == run("gpu") == run("laptop"), "not all answers were looked at")
    return f"{n} answers directly, the same through the node that has the models and through one that has not"


case(body)
