#!/usr/bin/env python3
# slow: real OpenClaw without a provider of its own: discovery, agent turns at peers, peers that die, and no network at all
import os
import signal
import time

import outage
from lab import LAB_DIR, Later, case, check, counted, ctl, equal, metric, unload, wait
from claw.home import LONG, OURS, Claw, asked, models_down, models_up

# How today's OpenClaw may be told where an Ollama is; the last but one is a server's address without the /v1.
APIS = {
    "plain": {"baseUrl": f"{OURS}/v1"},
    "chat": {"baseUrl": f"{OURS}/v1", "api": "openai-completions"},
    "bare": {"baseUrl": OURS, "api": "openai-completions"},
    "responses": {"baseUrl": f"{OURS}/v1", "api": "openai-responses"},
    "messages": {"baseUrl": OURS, "api": "anthropic-messages"},
}
TWENTY = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
OTHER = {"gpu": "nas", "nas": "gpu"}


def row(id):
    return {"id": id, "name": id, "reasoning": False, "input": ["text"], "contextWindow": 32768, "maxTokens": 64, "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0}}


CONFIG = {
    "tools": {"toolSearch": False},  # or a local model is given a search of tools instead of the tools
    "agents": {"defaults": {"model": {"primary": "ollama/agent", "fallbacks": ["ollama/mine"]}}},
}


def discovery(claw):
    """The list it shows, and what it believes of models of peers, with one of them silent."""
    want = {"agent:latest": {"tools": True, "thinking": False, "context": 65536}, "thinker:latest": {"tools": False, "thinking": True, "context": 65536},
            "tools:latest": {"tools": True, "thinking": False, "context": 4096}, "second:latest": {"tools": False, "thinking": False, "context": 4096}}
    first = claw.discover()
    ctl("blackhole", "on", "nas")
    began = time.monotonic()
    silent = claw.discover()
    check(time.monotonic() - began < 20, "discovery took so long that the silent node may have been forgotten: this shows nothing")
    for told in (first, silent):
        for model, facts in want.items():
            equal(told["models"].get(model), facts, model)
        check(told["ms"] < 1000, f"OpenClaw's discovery took {told['ms']} ms")
    code, told = claw.json("openclaw", "models", "list", "--refresh", "--provider", "ollama", "--json")
    ctl("blackhole", "off", "nas")
    have = {m["key"]: m["contextWindow"] for m in told["models"]}
    for model in ("agent", "thinker", "tools"):
        equal(have.get(f"ollama/{model}:latest"), want[f"{model}:latest"]["context"], f"context of {model} in the list (exit code {code})")
    wait(40, "nas is back", lambda: ctl("lists", "laptop", "second", ok=False).returncode == 0)
    return f"discovery {first['ms']} ms, with a silent peer {silent['ms']} ms"


def answered(told, model, text):
    check(told["ok"], f"{model}: {str(told.get('error'))[:300]}")
    equal((told["final"].strip(), told["model"], told["provider"]), (text, model, "ollama"), "the turn's end")


def tool_turn(claw):
    _, at = asked()
    _, told = claw.turn("ollama/agent", "Read notes.txt")
    answered(told, "agent", "It is sunny in Paris.")
    equal((told["toolSummary"]["tools"], told["toolSummary"]["failures"]), (["read"], 0), "its tool call")
    rows, _ = asked(at)
    check([r[0] for r in rows] == ["agent", "agent"] and {r[1] for r in rows} <= {"gpu", "nas"}, f"asked: {rows}")


def without_network(claw):
    """A plain turn at a peer, by the unix socket alone."""
    sock = os.path.join(LAB_DIR, "laptop", "home", "apps.sock")
    config = os.path.join(LAB_DIR, "claw", "unix.json5")
    with open(config, "w", encoding="utf-8") as f:
        f.write('{ listen: ["127.0.0.1:11434", "unix:%s"] }' % sock)
    ctl("configure", "laptop", config)
    wait(30, "the laptop lists the thinker again", lambda: ctl("lists", "laptop", "thinker", ok=False).returncode == 0)
    # Only loopback is there, and nothing on it but what `pipe` brings.
    script = 'ip link set lo up; "$0" pipe "$1" >&2 & pipe=$!; shift; "$@"; code=$?; kill $pipe; exit $code'
    inside = ["unshare", "-n", "sh", "-c", script, os.path.join(LAB_DIR, "bin", "tailherd"), sock]
    others = claw.run("sh", "-c", "ip -o link | wc -l", before=inside).stdout.strip()
    equal(others, "1", "network devices in there")
    _, at = asked()
    _, told = claw.turn("ollama/thinker", "What is the answer?", before=inside)
    answered(told, "thinker", "The answer is forty-two.")
    equal(asked(at)[0], [("thinker", "gpu", 1)], "asked")


def dies_before(claw):
    """Both nodes take long to load; the one that has the request dies, the other then loads at once."""
    slow = {n: os.path.join(LAB_DIR, n, "load-delay") for n in OTHER}
    for n, file in slow.items():
        unload(n)
        with open(file, "w", encoding="utf-8") as f:
            f.write("40")
    _, at = asked()
    later = Later(lambda: claw.turn("ollama/agent", "Read notes.txt"))
    wait(120, "the turn waits at a peer", lambda: outage.waiting_at("agent"), every=0.1)
    where = outage.waiting_at("agent")
    for file in slow.values():
        os.remove(file)
    ctl("kill", "tailherd", where)
    began = time.monotonic()
    _, told = later.result(200)
    answered(told, "agent", "It is sunny in Paris.")
    rows, _ = asked(at)
    equal([(m, n) for m, n, _ in rows], [("agent", OTHER[where])] * 2, f"asked after {where} was killed")
    check(rows[0][2] > 1, f"the request was never at {where}: {rows}")
    ctl("start", "tailherd", where)
    return f"killed before its first byte: the turn went on, {time.monotonic() - began:.0f} s to its end"


def dies_within(claw):
    """The stream of a long answer breaks; OpenClaw is told, asks again, and the other node answers."""
    for n in OTHER:
        wait(30, f"the laptop is heard by {n}", lambda: metric("laptop", "tailherd_peer_up", peer=n) > 0)
    began_at = {n: metric("laptop", "tailherd_time_to_first_token_seconds_count", model="long:latest", peer=n) for n in OTHER}
    _, at = asked()
    later = Later(lambda: claw.turn("ollama/long", "Count"))

    def streams():
        return next((n for n in OTHER if metric("laptop", "tailherd_time_to_first_token_seconds_count", model="long:latest", peer=n) > began_at[n]), None)

    wait(120, "the answer streams", streams)
    where = streams()
    with open(os.path.join(LAB_DIR, where, "tailherd.pid"), encoding="utf-8") as f:
        os.kill(int(f.read()), signal.SIGKILL)  # at once: the stream does not wait
    _, told = later.result(200)
    ctl("start", "tailherd", where)
    check(told["ok"], f"long: {str(told.get('error'))[:300]}")
    equal((told["model"], told["provider"]), ("long", "ollama"), "the model that ended the turn")
    rows, _ = asked(at)
    equal([(m, n) for m, n, _ in rows], [("long", where), ("long", OTHER[where])], "asked")
    equal([int(w) for w in told["payloads"][0]["text"].split()], counted(LONG), "the numbers of the whole answer")
    return "killed in mid-stream: asked once more, answered whole by the other"


def too_long(claw):
    """Ollama's own words reach OpenClaw, which knows them: it compacts, and if there is nothing to compact it says so."""
    _, at = asked()
    # A token for each letter: twice the window that it asks for.
    code, told = claw.turn("ollama/full", "Say pong. " + "0123456789 abcdefghijklmnopqrstuvwxyz.\n" * 1700)
    check(not told["ok"], f"a prompt that is too long was answered: {told.get('usage')}")
    equal((code, told["error"]["kind"], told["model"]), (1, "context_overflow", "full"), "a prompt that is too long")
    rows = asked(at)[0]
    check(rows and all(m == "full" for m, _, _ in rows), f"asked: {rows}")
    check("attempting auto-compaction for ollama/full" in open(os.path.join(LAB_DIR, "claw", "log"), encoding="utf-8").read(), "OpenClaw did not try to compact")


def each_api(claw):
    """Each way of telling it where we are, with models it was told of."""
    told = {name: {**p, "apiKey": "none", "models": [row("tiny")]} for name, p in APIS.items() if name != "plain"}
    ways = Claw({**CONFIG, "models": {"providers": told}})
    for name in told:
        _, at = asked()
        code, said = ways.json("openclaw", "infer", "model", "run", "--local", "--model", f"{name}/tiny", "--prompt", "Say pong", "--json")
        check(code == 0 and said["outputs"][0]["text"].strip() == TWENTY, f"{name}: {str(said)[:300]}")
        equal([r[:2] for r in asked(at)[0]], [("tiny", "gpu")], f"{name}: asked")
    ways = Claw({**CONFIG, "models": {"providers": {"ollama": {**APIS["plain"], "models": []}}}})
    code, said = ways.json("openclaw", "infer", "model", "run", "--local", "--model", "ollama/tiny", "--prompt", "Say pong", "--json")
    check(code == 0 and said["outputs"][0]["text"].strip() == TWENTY, f"/v1 without an api: {str(said)[:300]}")


def body():
    models_up()
    try:
        claw = Claw(CONFIG)
        figures = [discovery(claw)]
        tool_turn(claw)
        figures.append(dies_before(claw))
        figures.append(dies_within(claw))
        too_long(claw)
        without_network(claw)
        each_api(claw)
        return "; ".join(figures) + f"; {len(APIS)} ways to name the address"
    finally:
        models_down()


case(body)
