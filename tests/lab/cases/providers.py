#!/usr/bin/env python3
# chains over stand-ins of hosted providers, behind https, in order, with each error, keys, other nodes, and the real SDKs
import base64
import json
import os

from lab import ADDRESS, ADMIN, HERE, LAB_DIR, MESH, ask, case, check, ctl, equal, get, load, metric, post, run_in, wait
from provider import Providers, Says, Tunnels, certificates

AT, HOST, STRANGER, OTHER = "203.0.113.20", "api.provider.test", "self-signed.provider.test", "other.provider.test"
KEY = "sk-lab-canary-5f1e"
THREE = " one two three"
STREAM = {"Content-Type": "text/event-stream"}


def error(status, headers=None, **said):
    return Says(status, json.dumps({"error": said}), headers or {})


def events(*items):
    return Says(200, "".join(items), STREAM)


def data(said, kind=None):
    return (f"event: {kind}\n" if kind else "") + f"data: {json.dumps(said)}\n\n"


def delta(text, **more):
    return data({"id": "gen-1", "object": "chat.completion.chunk", "model": "tiny", "choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}], **more})


BROKEN = data({"id": "gen-1", "object": "chat.completion.chunk", "model": "tiny", "error": {"code": 502, "message": "Provider disconnected"},
               "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]})
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "req_1"}
# A provider's name, what it says, whether it rests then, and the word for it in the metrics. The mesh answers.
MOVES_ON = [
    ("busy", error(429, message="Rate limit reached for requests", type="requests", param=None, code="rate_limit_exceeded"), True, "busy"),
    ("later", error(429, {"retry-after": "2"}, message="Rate limit reached", type="tokens", param=None, code="rate_limit_exceeded"), True, "busy"),
    ("claude", Says(529, json.dumps(OVERLOADED)), True, "engine"),
    ("unpaid", error(402, code=402, message="Insufficient credits. Add more using https://openrouter.ai/settings/credits"), True, "billing"),
    ("quota", error(429, message="You exceeded your current quota, please check your plan and billing details.", type="insufficient_quota", param=None, code="insufficient_quota"), True, "billing"),
    ("groq", error(413, message="Request too large for model `tiny` on tokens per minute (TPM): Limit 6000, Requested 9000", type="tokens", code="rate_limit_exceeded"), False, "too_large"),
    ("router", events(": OPENROUTER PROCESSING\n\n", BROKEN), True, "engine"),
    ("gemini", Says(429, json.dumps([{"error": {"code": 429, "message": "You exceeded your current quota", "status": "RESOURCE_EXHAUSTED"}}])), True, "busy"),
    ("lockedout", error(401, message=f"Incorrect API key provided: {KEY}", type="invalid_request_error", param=None, code="invalid_api_key"), True, "key"),
]
# What is the request's own fault: word for word, and nobody else is asked.
TELLS = [
    ("full", error(400, message="This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.", type="invalid_request_error", param="messages", code="context_length_exceeded"), "/v1/chat/completions"),
    ("claudefull", Says(400, json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"}})), "/v1/messages"),
]
MESSAGES = {"claude", "claudefull", "claudebreaks", "messages"}
PLAIN = ["openai", "chat", "messages", "breaks", "claudebreaks"]
NAMES = [row[0] for row in MOVES_ON + TELLS] + PLAIN


def config(port, verbs):
    def provider(name):
        at = {"baseUrl": f"https://{HOST}:{port}/{name}", "api": "anthropic-messages"} if name in MESSAGES else {"baseUrl": f"https://{HOST}:{port}/{name}/v1", "api": "openai-completions"}
        if name == "gemini":
            at = {"baseUrl": f"https://{HOST}:{port}/gemini/v1beta", "api": "google-generative-ai"}
        models = [{"id": m, "contextWindow": 4096, "maxTokens": 512, "cost": {"input": 2.5, "output": 10}} for m in ("tiny", "tools", "count")]
        return {**at, "apiKey": KEY, "models": models}

    bad = {host: {"baseUrl": f"https://{at}:{port}/openai/v1", "api": "openai-completions", "apiKey": KEY, "models": [{"id": "tiny"}]} for host, at in (("selfsigned", STRANGER), ("othername", OTHER))}
    agents = {f"to-{name}": {"model": {"primary": f"{name}/tiny", "fallbacks": ["ollama/tiny"]}} for name in (*NAMES, *bad)}
    agents["order"] = {"model": {"primary": "busy/tiny", "fallbacks": ["ollama/nobody-has-it", "quota/tiny", "claude/tiny", "ollama/tiny", "openai/tiny"]}}
    agents["defaults"] = {"model": {"primary": "ollama/mine", "fallbacks": ["openai/tiny", "ollama/tiny"]}}
    return {"failover": {"cooldown": ["1h"], "billingCooldown": "1h"}, "agents": agents, "aliases": {"gpt-*": "openai/tiny"},
            "models": {"providers": {**{name: provider(name) for name in NAMES}, **bad}}, "access": [{"from": ["tag:ollama"], "verbs": verbs}]}


def configure(port, verbs):
    path = os.path.join(LAB_DIR, "providers.json5")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(config(port, verbs), f)
    ctl("configure", "laptop", path)
    wait(30, "the laptop lists the mesh", lambda: ctl("lists", "laptop", "mine", "tiny", "second", ok=False).returncode == 0)


def native(model, stream=False, node="laptop", **kw):
    return post(node, "/api/chat", {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": stream, "options": {"num_predict": 3}}, **kw)


def posted(path, model, stream=False):
    return post("laptop", path, {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": stream, "max_tokens": 3})


def order(providers):
    """Steps are asked one after the other, the mesh's own where it stands, and the rest not at all."""
    for name in ("busy", "quota", "claude"):
        providers.says[name] = next(row[1] for row in MOVES_ON if row[0] == name)
    at = len(providers.seen)
    a = native("order")
    equal((a.status, a.by, a.json["message"]["content"]), (200, "gpu", THREE), f"the chain's fifth step: {a.text[:200]}")
    equal([s.name for s in providers.seen[at:]], ["busy", "quota", "claude"], "who was asked, in order")
    check(a.total_s < 1, f"three providers failed and the mesh answered after {a.total_s:.2f} s")
    told = [line.split("passed over: ")[1].split("; ")[0] for line in ctl("cli", "laptop", "explain", "order").stdout.splitlines() if "passed over: " in line]
    equal(told, ["it rests after a failure", "no node has it", "it rests: its account has no money left", "it rests after a failure"], "what `explain` passes over")
    # The mesh first; a provider only when it cannot.
    equal((native("mine").by, providers.hits("openai")), ("laptop", 0), "who answers while the mesh can")
    ctl("stop", "ollama", "laptop")
    b = native("mine")
    equal((b.status, b.headers.get("x-tailherd-served-by"), b.json["message"]["content"], providers.hits("openai")), (200, "openai/tiny", THREE, 1), "the mesh cannot")
    equal((b.json["model"], providers.seen[-1].headers["authorization"]), ("mine", f"Bearer {KEY}"), "the caller's name, the provider's key")
    usd = (b.json["prompt_eval_count"] * 2.5 + b.json["eval_count"] * 10) / 1e6
    check(abs(metric("laptop", "tailherd_cost_usd_total", provider="openai") - usd) < 1e-9, "what it cost")
    ctl("start", "ollama", "laptop")
    return a.total_s


def errors(providers):
    for name, said, rests, why in MOVES_ON:
        if name in ("busy", "quota", "claude"):
            continue  # asked by `order` already, and they rest
        providers.says[name] = said
        stream = name == "router"
        for ask_it in (lambda: native(f"to-{name}", stream), lambda: posted("/v1/chat/completions", f"to-{name}", stream)):
            a = ask_it()
            equal((a.status, a.by), (200, "gpu"), f"{name}: {a.text[:200]}")
            check("error" not in a.text and KEY not in a.text, f"{name}: {a.text[:300]}")
        equal(providers.hits(name), 1 if rests else 2, f"how often {name} was asked")
    for name, _, rests, why in MOVES_ON:
        check(metric("laptop", "tailherd_attempts_total", peer=name, reason=why) >= 1, f"{name} is not counted as {why}")
    # It said in how many seconds, and is asked again then.
    del providers.says["later"]
    wait(6, "`later` is asked again", lambda: native("to-later").by == "later", every=0.2)
    equal(native("to-busy").by, "gpu", "who said nothing of when still rests")
    equal({s.path for s in providers.seen if s.name == "gemini"}, {"/v1beta/openai/chat/completions"}, "Gemini's path")


def words(providers):
    """The request's fault reaches the caller in the provider's words, in his dialect; and so does what breaks in mid-stream."""
    for name, said, path in TELLS:
        providers.says[name] = said
        a = posted(path, f"to-{name}")
        equal((a.status, a.text), (said.status, said.body), f"{name}, passed")
        b = native(f"to-{name}")
        equal((b.status, b.json), (said.status, {"error": json.loads(said.body)["error"]["message"]}), f"{name}, translated")
        equal(providers.hits(name), 2, f"how often {name} was asked")
    providers.says["breaks"] = events(": OPENROUTER PROCESSING\n\n", delta("half"), BROKEN)
    a = posted("/v1/chat/completions", "to-breaks", stream=True)
    check(a.status == 200 and "half" in a.text and "Provider disconnected" in a.text and "[DONE]" not in a.text, f"broken in mid-stream: {a.text[:500]}")
    start = {"type": "message_start", "message": {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "tiny", "usage": {"input_tokens": 1, "output_tokens": 1}}}
    providers.says["claudebreaks"] = events(data(start, "message_start"), data({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}, "content_block_start"),
                                            data({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "half"}}, "content_block_delta"), data(OVERLOADED, "error"))
    a = posted("/v1/messages", "to-claudebreaks", stream=True)
    check("half" in a.text and a.text.rstrip().endswith(json.dumps(OVERLOADED)), f"Anthropic's, passed: {a.text[:500]}")
    for name, text in (("breaks", "Provider disconnected"), ("claudebreaks", "Overloaded")):
        lines = native(f"to-{name}", stream=True).lines
        check(lines[0]["message"]["content"] == "half" and text in lines[-1].get("error", "") and not any(l.get("done") for l in lines), f"{name}, translated: {lines}")


def others(providers):
    """What a peer may not ask for here: a provider's model, an agent, an alias, a cloud model."""
    at = len(providers.seen)
    names = ("openai/tiny", "order", "to-openai", "gpt-x", "some:cloud")
    for model in names:
        for kw in ({"to": ADDRESS["laptop"], "port": MESH}, {"headers": {"x-tailherd-peer": "laptop"}}):
            a = native(model, node="gpu", **kw)
            equal(a.status, 404, f"gpu asks for {model} ({kw}): {a.text[:200]}")
    a = native("tiny", node="gpu", to=ADDRESS["laptop"], port=MESH, headers={"x-tailherd-agent": "to-openai"})
    equal(a.status, 404, f"gpu asks by an agent's header: {a.text[:200]}")
    listed = ask("gpu", "GET", "/api/tags", to=ADDRESS["laptop"], port=MESH).text
    check("mine" in listed and "openai/" not in listed and "to-" not in listed, f"the list over the mesh: {listed[:300]}")
    equal(len(providers.seen), at, "what providers were asked for gpu")
    equal(native("mine", node="gpu", to=ADDRESS["laptop"], port=MESH).status, 200, "gpu asks for a model of the laptop")
    return len(names) * 2 + 1


def proofs(providers):
    """Who cannot prove its name is not asked, and gets no key."""
    at = len(providers.seen)
    for name, host in (("selfsigned", STRANGER), ("othername", OTHER)):
        a = native(f"to-{name}")
        equal((a.status, a.by), (200, "gpu"), f"{name}: {a.text[:200]}")
        check(providers.hellos[host] > 0, f"{host} was not even greeted: this shows nothing")
    equal(len(providers.seen), at, "what was asked of who could not prove its name")
    equal(native("to-openai").by, "openai", "who answers with a good certificate")


def clients(providers):
    figures = []
    which = {"Python": [os.environ["LAB_SDK_PY"], os.path.join(HERE, "sdk", "clients.py")], "npm": ["node", os.path.join(HERE, "sdk", "clients.mjs")]}
    for dialect in ("chat", "messages"):
        for name, argv in which.items():
            at = len(providers.seen)
            r = run_in("laptop", argv + [f"{dialect}/tiny", f"{dialect}/tools", "embed", dialect], timeout=120)
            check(r.returncode == 0, f"{name} on a provider of {dialect}: {(r.stderr.strip() or r.stdout)[-700:]} {providers.refused[-1:]}")
            check({s.name for s in providers.seen[at:]} == {dialect}, "somebody else answered them")
            figures.append(f"{name} {dialect} {int(r.stdout)}")
    equal(providers.refused, [], "what a provider of one dialect did not know")
    return ", ".join(figures)


def proxied(providers):
    """With `HTTPS_PROXY` a provider on the internet is asked through it and by no other way; `NO_PROXY` excepts it."""
    proxy = Tunnels("laptop", AT)
    place, through = os.path.join(LAB_DIR, "laptop", "env"), f"HTTPS_PROXY=http://me:{KEY}@127.0.0.1:{proxy.port}"
    try:
        for more, want in (("", [("CONNECT", f"{HOST}:{providers.port}", "Basic " + base64.b64encode(f"me:{KEY}".encode()).decode())]), (" NO_PROXY=x,.provider.test", [])):
            with open(place, "w", encoding="utf-8") as f:
                f.write(through + more)
            configure(providers.port, ["infer", "list"])
            proxy.asked.clear()
            at = providers.hits("openai")
            a = native("openai/tiny")
            equal((a.status, a.headers.get("x-tailherd-served-by"), providers.hits("openai") - at), (200, "openai/tiny", 1), f"a provider{more}: {a.text[:200]}")
            equal(proxy.asked, want, f"what the proxy was asked{more}")
            equal(native("tiny").by, "gpu", "who answers for the mesh")
            equal(len(proxy.asked), len(want), "the mesh through the proxy")
    finally:
        os.remove(place)


def keys():
    """A key stands in the configuration and nowhere else."""
    told = [get("laptop", path, port=ADMIN).text for path in ("/status", "/metrics", "/requests", "/explain?model=order")]
    told += [ctl("cli", "laptop", *argv, ok=False).stdout for argv in (("status",), ("explain", "order"), ("requests",), ("doctor",))]
    check(all(told), "some of what is looked at says nothing")
    check(not any(KEY in text for text in told), "a key is shown")
    places = [os.path.join(LAB_DIR, n, "tailherd.log") for n in ("laptop", "gpu", "nas", "colleague")]
    for folder, _, files in os.walk(os.path.join(LAB_DIR, "laptop", "home")):
        places += [os.path.join(folder, f) for f in files]
    holds = []
    for place in filter(os.path.isfile, places):
        with open(place, encoding="utf-8", errors="replace") as f:
            holds += [os.path.basename(place)] * (KEY in f.read())
    equal(holds, ["config.json5"], "files with a key")
    return len(told) + len(places) - 1


def body():
    folder, bundle = os.path.join(LAB_DIR, "tls"), "/etc/ssl/certs/ca-certificates.crt"
    authority = certificates(folder, [HOST, OTHER], [STRANGER])
    ctl("exec", "laptop", "sh", "-c", f"cp {bundle} /etc/before.crt; cat {authority} >> {bundle}; ip addr add {AT}/32 dev lo; echo {AT} {HOST} {STRANGER} {OTHER} >> /etc/hosts")
    try:
        return proof(Providers("laptop", AT, folder, [HOST, OTHER, STRANGER], {n: "messages" if n in MESSAGES else "chat" for n in NAMES}, "gpu"))
    finally:
        ctl("exec", "laptop", "sh", "-c", f"cp /etc/before.crt {bundle}; ip addr del {AT}/32 dev lo; sed -i /provider.test/d /etc/hosts", ok=False)


def proof(providers):
    load("gpu", "tiny")
    configure(providers.port, ["infer", "list"])
    took = order(providers)
    errors(providers)
    words(providers)
    tried = others(providers)
    proofs(providers)
    figures = clients(providers)
    proxied(providers)
    looked = keys()
    # The control of what a peer may not: with the verb it may.
    configure(providers.port, ["infer", "list", "spend"])
    at = providers.hits("openai")
    equal((native("to-openai", node="gpu", to=ADDRESS["laptop"], port=MESH).status, providers.hits("openai")), (200, at + 1), "gpu asks with the verb `spend`")
    return (f"{len(MOVES_ON)} errors move on (three steps in {took * 1000:.0f} ms), {len(TELLS)} come word for word, 2 break in mid-stream; {tried} asks of a peer: 0 hits; "
            f"a key in none of {looked} places; through a proxy and past it; {figures}")


case(body)
