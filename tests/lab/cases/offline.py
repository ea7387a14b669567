#!/usr/bin/env python3
# offline, with providers and chains written down, lists, the CLI, the SDKs and every name: 0 packets beyond this machine, the tailnet and the LAN
import json
import os

from lab import ADMIN, HERE, LAB_DIR, case, check, ctl, equal, generate, get, models, post, run_in, wait

# Everything that leaves the node's cable for elsewhere: there is a route, and it ends in nothing.
AWAY = 'oifname "eth0" ip daddr != { 10.77.0.0/16, 100.64.0.0/10, 224.0.0.0/4 }'
AWAY6 = 'oifname "eth0" ip6 daddr != { fe80::/10, ff00::/8, fd7a:115c:a1e0::/48 }'
CONFIG = {
    "agents": {"defaults": {"model": {"primary": "ollama/mine", "fallbacks": ["far/big", "named/big"]}}, "coding": {"model": {"primary": "far/big", "fallbacks": ["ollama/mine"]}},
               "away": {"model": {"primary": "far/big", "fallbacks": ["named/big"]}}},
    "aliases": {"gpt-*": "far/big"},
    "models": {"providers": {
        "far": {"baseUrl": "https://203.0.113.10/v1", "api": "openai-completions", "apiKey": "key", "models": [{"id": "big", "contextWindow": 32768}]},
        "open": {"baseUrl": "https://203.0.113.11/v1", "api": "openai-completions", "apiKey": "key"},
        "named": {"baseUrl": "https://provider.test/v1", "api": "anthropic-messages", "apiKey": "key", "models": [{"id": "big", "contextWindow": 32768}]},
    }},
}


def configure(offline):
    path = os.path.join(LAB_DIR, "offline.json5")
    with open(path, "w", encoding="utf-8") as f:
        json.dump({**CONFIG, "offline": offline}, f)
    ctl("configure", "laptop", path)
    wait(30, "the laptop lists the mesh", lambda: {"tiny", "second"} <= models("laptop"))


def away():
    return sum(int(ctl("counted", "laptop", name).stdout.split()[0]) for name in ("away", "away6"))


def ask(model):
    return post("laptop", "/api/chat", {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": False, "options": {"num_predict": 3}}, timeout=60)


def clients():
    """Lists, the CLI, and each name by which a provider could be asked."""
    ollama = [os.environ["LAB_OLLAMA"]]
    for argv in (ollama + ["list"], ollama + ["ps"], ollama + ["run", "tiny", "hello", "--nowordwrap"], ollama + ["show", "tools"]):
        r = run_in("laptop", argv, env={"HOME": "/tmp"}, timeout=120)
        equal(r.returncode, 0, f"{' '.join(argv[1:])}: {r.stderr[-200:]}")
    # All that the real SDKs do; most of their time they import themselves, on a machine that may be busy.
    ran = 0
    for which, argv in (("Python", [os.environ["LAB_SDK_PY"], os.path.join(HERE, "sdk", "clients.py")]), ("npm", ["node", os.path.join(HERE, "sdk", "clients.mjs")])):
        r = run_in("laptop", argv + ["tiny", "tools", "embed"], timeout=200)
        check(r.returncode == 0, f"{which}: {(r.stderr.strip() or r.stdout)[-700:]}")
        ran += int(r.stdout)
    for path in ("/api/tags", "/v1/models", "/api/ps"):
        names = get("laptop", path).text
        check("far/" not in names and "gpt-" not in names and '"away' not in names, f"{path} lists what nobody may ask: {names[:300]}")
    equal(ask("coding").json["message"]["content"], " one two three", "a chain whose first step is far away")
    for model in ("far/big", "open/any", "named/big", "away", "gpt-x"):
        a = ask(model)
        check(a.status in (403, 404, 503), f"{model}: {a.status} {a.text[:200]}")
    equal(ask("some:cloud").status, 403, "a cloud model")
    for path in ("/api/pull", "/api/push"):
        a = post("laptop", path, {"model": "nobody/has-this", "stream": False}, timeout=60)
        check(a.status >= 400 and "offline" in a.text, f"{path}: {a.status} {a.text[:200]}")
    # its own engine gone, the chain would go on to a provider
    ctl("stop", "ollama", "laptop")
    wait(20, "its own model cannot be served", lambda: generate("laptop", "mine").status in (404, 503))
    ctl("start", "ollama", "laptop")
    return ran


def body():
    try:
        return proof()
    finally:
        ctl("cli", "laptop", "offline", "off", ok=False)
        ctl("exec", "laptop", "sed", "-i", "/provider.test/d", "/etc/hosts", ok=False)


def proof():
    ctl("count", "laptop", "away", AWAY)
    ctl("count", "laptop", "away6", AWAY6)
    ctl("exec", "laptop", "sh", "-c", "echo 203.0.113.12 provider.test >> /etc/hosts")
    configure(True)
    ran = clients()
    status = get("laptop", "/status", port=ADMIN).text
    check("203.0.113" not in status, "status tells of a provider that is absent")
    n = away()
    equal(n, 0, "packets that left for elsewhere while offline")
    # The control: the same names, asked when it is not offline, are counted.
    configure(False)
    a = ask("away")
    check(a.status >= 400, f"a provider behind a route to nowhere answered: {a.text[:200]}")
    control = away()
    check(control > 0, "no packet of a request to a provider was counted: this case shows nothing")
    # and to switch it off again is enough
    ctl("cli", "laptop", "offline", "on")
    before = away()
    for model in ("away", "far/big", "gpt-x"):
        check(ask(model).status in (403, 404, 503), model)
    equal(away(), before, "packets after `tailherd offline on`")
    return f"0 packets with three providers written down, over {ran} answers of the SDKs; without offline {control}; 0 more after `offline on`"


case(body)
