#!/usr/bin/env python3
# a node whose own Ollama is gone is still an Ollama: heartbeat, version, the others' models
from lab import case, check, ctl, equal, generate, get, models, wait


def body():
    ctl("stop", "ollama", "laptop")
    equal(get("laptop", "/").text, "Ollama is running", "GET /")
    equal(get("laptop", "/api/version").json["version"], "0.32.15", "/api/version")
    wait(15, "its own model is no longer offered as if it were here", lambda: generate("laptop", "mine").status in (404, 503))
    equal({"tiny", "second"} <= models("laptop"), True, "the others' models listed")
    a = generate("laptop", "tiny")
    check((a.status, a.by) == (200, "gpu"), f"tiny: {a.status} by {a.by}: {a.text[:200]}")
    equal(ctl("ollama", "laptop", "run", "tiny", "hello", "--nowordwrap").stdout.split(), "one two three four five six seven eight nine ten eleven twelve thirteen "
          "fourteen fifteen sixteen seventeen eighteen nineteen twenty".split(), "ollama run")
    ctl("start", "ollama", "laptop")
    back = wait(15, "its own model is back", lambda: generate("laptop", "mine").by == "laptop")
    return f"served by peers while its own engine was away; its own model back after {back:.1f} s"


case(body)
