#!/usr/bin/env python3
# the userspace node, where tailscaled brings strangers to 127.0.0.1: 200 calls each of another person, never taken for local
from concurrent.futures import ThreadPoolExecutor

from lab import ADDRESS, ADMIN, APPS, ENGINE, ask, case, check, ctl, equal, get, models, run_in
import json
import time

CALLS = 200
STRANGER = {"to": ADDRESS["nas"]}


def patient(call):
    """tailscaled now and then refuses a connection whose loopback port it has not let go of since the last one ("already
    registered"). Nothing reached tailherd then, and nothing is said about it; so it is tried again."""
    for _ in range(40):
        try:
            return call()
        except ConnectionRefusedError:
            time.sleep(0.05)
    return call()


def apps(i):
    if i % 2:  # a local caller would see the whole mesh, a remote one only what this node's engine has
        names = {m["name"].removesuffix(":latest") for m in patient(lambda: get("colleague", "/api/tags", port=APPS, **STRANGER)).json["models"]}
        return None if names == {"second", "third", "shared"} else f"list: {names}"
    body = {"source": "second", "destination": "stolen"}
    a = patient(lambda: ask("colleague", "POST", "/api/copy", body, port=APPS, **STRANGER))
    return None if a.status == 403 else f"copy: {a.status} {a.text[:100]}"


def admin(i):
    path = ("/status", "/metrics", "/", "/readyz")[i % 4]
    a = patient(lambda: get("colleague", path, port=ADMIN, **STRANGER))
    return None if a.status == 403 else f"admin: {a.status} {a.text[:100]}"


def calls(what):
    with ThreadPoolExecutor(16) as pool:
        wrong = [w for w in pool.map(what, range(CALLS)) if w]
    check(not wrong, f"{len(wrong)} of {CALLS} calls taken for local, e.g. {wrong[0] if wrong else ''}")


def local(uid, n=20):
    """Real programs on the node under a user of their own: local, each time."""
    for _ in range(n):
        r = run_in("nas", ["curl", "-sS", "-m", "5", "http://127.0.0.1:11434/api/tags"], uid=uid)
        names = {m["name"].removesuffix(":latest") for m in json.loads(r.stdout or "{}").get("models", [])}
        check({"tiny", "second"} <= names, f"a program of uid {uid} on the node is not local: {r.stdout[:200]} {r.stderr}")
        r = run_in("nas", ["curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:11437/metrics"], uid=uid)
        equal(r.stdout, "200", f"/metrics for a program of uid {uid} on the node")


def body():
    before = models("nas", ENGINE)
    calls(apps)
    calls(admin)
    # Nobody stands in front of the engine itself there: the only thing to do is to say it, loudly.
    equal(get("colleague", "/api/tags", port=ENGINE, headers={"Host": "localhost"}, **STRANGER).status, 200, "the bare engine behind userspace tailscaled")
    doctor = ctl("cli", "nas", "doctor", ok=False)
    check(doctor.returncode == 1 and "11435" in doctor.stdout + doctor.stderr, f"doctor does not name the open engine: exit {doctor.returncode}, {doctor.stdout[-300:]}")
    equal(models("nas", ENGINE), before, "the node's models")
    local(65534)
    local(20002)
    return f"{CALLS} calls each to 11434 and 11437: none local; doctor names 11435; 80 local calls of two users all local"


case(body)
