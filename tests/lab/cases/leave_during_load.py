#!/usr/bin/env python3
# a client that leaves during a load does not abort the load (Ollama alone would): the next one meets a loaded model
import os
import time

from lab import APPS, ENGINE, LAB_DIR, Http, case, check, equal, generate, loaded, unload, wait

DELAY = 3.0


def leave(node, port, seconds):
    h = Http(node, port=port, timeout=seconds)
    try:
        h.start("POST", "/api/generate", {"model": "slow", "prompt": "x", "stream": False, "options": {"num_predict": 3}})
        raise AssertionError("an answer before the load ended")
    except TimeoutError:
        pass
    finally:
        h.close()


def body():
    with open(os.path.join(LAB_DIR, "gpu", "load-delay"), "w", encoding="utf-8") as f:
        f.write(str(DELAY))
    unload("gpu")
    leave("gpu", ENGINE, 1.0)
    time.sleep(DELAY + 3)
    check("slow" not in loaded("gpu"), "Ollama alone finished the load: this case shows nothing")
    out = []
    for node in ("laptop", "gpu"):
        unload("gpu")
        began = time.monotonic()
        leave(node, APPS, 1.0)
        wait(DELAY + 6, f"the load ends although its client on {node} left", lambda: "slow" in loaded("gpu"))
        up = time.monotonic() - began
        a = generate(node, "slow")
        equal(a.status, 200, "the next request")
        check(a.total_s < 1.5, f"the next request took {a.total_s:.2f} s")
        out.append(f"from {node}: loaded after {up:.1f} s, next answer {a.total_s * 1000:.0f} ms")
    return "; ".join(out) + "; directly the same leaving aborts it"


case(body)
