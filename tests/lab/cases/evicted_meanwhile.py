#!/usr/bin/env python3
# a model leaves memory between choice and arrival: loaded after all or refused as `not_loaded`, the client sees an answer
import json

from lab import ADDRESS, MESH, case, check, equal, generate, get, load, loaded, post, unload, wait

ASK = {"model": "shared", "prompt": "x", "stream": False, "options": {"num_predict": 3}}
ROUNDS = 6


def seen():
    """Where the laptop believes that the model is in memory."""
    rows = [m for m in get("laptop", "/status", port=11437).json["models"] if m["name"].startswith("shared")]
    return {o["peer"] for m in rows for o in m["offers"] if o["loaded"]}


def across(plan):
    """As the laptop's sidecar would send it, having chosen nas for that reason."""
    headers = {"x-tailherd-hop": "1", "x-tailherd-plan": plan, "x-tailherd-attempt": "5" * 32}
    return post("laptop", "/api/generate", ASK, headers, to=ADDRESS["nas"], port=MESH)


def body():
    unload("gpu", "shared")
    late = []
    for i in range(ROUNDS):
        load("nas", "shared")
        wait(10, "the laptop knows that nas has it in memory", lambda: seen() == {"nas"})
        # past every sidecar, as a person's `ollama stop` is; and at once the request
        post("nas", "/api/generate", {"model": "shared", "keep_alive": 0}, port=11435)
        wait(5, "it leaves memory", lambda: "shared" not in loaded("nas"))
        check(seen() == {"nas"} or i, "the laptop knew already: this case shows nothing")
        late.append(seen() == {"nas"})
        a = generate("laptop", "shared")
        equal((a.status, a.json["response"]), (200, " 1 2 3"), f"round {i}, by {a.by}: {a.text[:200]}")
        unload("gpu", "shared")
    check(sum(late) > ROUNDS // 2, f"the laptop was too quick in {ROUNDS - sum(late)} of {ROUNDS} rounds: this case shows nothing")

    unload("nas", "shared")
    refused = across("loaded")
    equal((refused.status, refused.headers.get("x-tailherd-refused")), (503, "not_loaded"), f"sent for a model in memory: {refused.text[:200]}")
    row = json.loads(refused.headers["x-tailherd-report"])
    check(row.get("state") == "cold", f"the refusal does not say how it stands: {row}")
    check("shared" not in loaded("nas"), "a refused request loaded the model")
    taken = across("load")
    equal((taken.status, taken.json["response"]), (200, " 1 2 3"), f"sent for a load: {taken.text[:200]}")
    equal(across("loaded").status, 200, "sent for a model in memory that is there")
    return f"{ROUNDS} of {ROUNDS} answered although it had left memory ({sum(late)} before the laptop heard of it); by hand: `loaded` is refused as not_loaded, `load` loads"


case(body)
