#!/usr/bin/env python3
# what another node may not do at a mesh port, tried on real nodes (rules 3, 4, 6, 9, 10, 11)
import time

from lab import ADDRESS, APPS, ENGINE, MESH, Http, ask, case, check, equal, get, models, post

TRIED = []
TWO = ({}, {"x-tailherd-hop": "1"})


def at(node, port, method, path, body=None, headers=None, who="laptop"):
    TRIED.append(path)
    return ask(who, method, path, body, headers, to=ADDRESS[node] if port != APPS else "127.0.0.1", port=port)


def refused(a, what, *status):
    check(a.status in status, f"{what}: {a.status} {a.text[:200]}")


def manages():  # rule 11
    before = models("gpu", ENGINE)
    for who in ("laptop", "colleague"):
        for port in (MESH, APPS):
            to = {"to": ADDRESS["gpu"], "port": port}
            for method, path, body in (
                ("DELETE", "/api/delete", {"model": "tiny"}), ("POST", "/api/copy", {"source": "tiny", "destination": "stolen"}),
                ("POST", "/api/create", {"model": "stolen", "from": "tiny"}), ("POST", "/api/pull", {"model": "nope"}),
                ("POST", "/api/push", {"model": "tiny"}), ("POST", "/api/blobs/sha256:" + "0" * 64, b"x"),
                ("POST", "/api/generate", {"model": "tiny", "keep_alive": 0}), ("POST", "/api/chat", {"model": "tiny", "messages": [], "keep_alive": 0}),
                ("POST", "/api/me", {}), ("POST", "/api/made-up", {"model": "tiny"}), ("GET", "/metrics", None), ("GET", "/status", None)):
                TRIED.append(path)
                refused(ask(who, method, path, body, **to), f"{who} {method} {path} on {port}", 403, 404)
    equal(models("gpu", ENGINE), before, "the models of gpu")


def one_body():  # rule 4
    for body in ('{"model":"tiny","MODEL":"count","prompt":"x"}', '{"model":"tiny","mod\\u0065l":"count","prompt":"x"}',
                 '{"model":"tiny","name":"count","prompt":"x"}', '{"model":"tiny","prompt":"x","keep_alive":"1m","\\u212aeep_alive":-1}',
                 '{"model":"tiny","prompt":"x","stream":false,"Stream":true}'):
        refused(at("gpu", MESH, "POST", "/api/generate", body), body, 400)
    equal(at("gpu", MESH, "POST", "/api/generate", '{"model":"tiny","prompt":"x","stream":false,"options":{"num_predict":1}}').status, 200, "one of each key")


def one_hop():  # rule 6
    for h in TWO:
        refused(at("gpu", MESH, "POST", "/api/generate", {"model": "second", "prompt": "x"}, h), "a model of another node", 404)
        refused(at("gpu", MESH, "POST", "/api/generate", {"model": "second@nas", "prompt": "x"}, h), "a pin to another node", 400, 404)
        refused(at("gpu", MESH, "POST", "/api/chat", {"model": "gpt-oss:120b-cloud", "messages": []}, h), "a cloud model", 404)
        refused(at("gpu", MESH, "GET", "/node/nas/api/tags", None, h), "a path to another node", 404)
        refused(at("gpu", MESH, "POST", "/api/generate", {"model": "second", "prompt": "x"}, {**h, "x-tailherd-peer": "nas"}), "a header to another node", 404)
        names = {m["name"].removesuffix(":latest") for m in at("gpu", MESH, "GET", "/api/tags", None, h).json["models"]}
        equal(names, models("gpu", ENGINE), "the list over the mesh")


def pages():  # rule 9
    for h in ({"Origin": "https://evil.example"}, {"Origin": f"http://{ADDRESS['gpu']}:{MESH}"}, {"Referer": "https://evil.example/"}, {"Sec-Fetch-Site": "cross-site"}):
        for method, path, body in (("GET", "/api/tags", None), ("POST", "/api/generate", {"model": "tiny", "prompt": "x"}), ("GET", "/mesh/v1/offers", None)):
            refused(at("gpu", MESH, method, path, body, h), f"{path} with {h}", 403)


def reserved():  # rule 3
    for base in ("/node/gpu", "/node/gpu/node/gpu"):
        for rest in ("/mesh/v1/offers", "/MESH/v1/offers", "//mesh/v1/offers", "/../mesh/v1/offers", "/./mesh/v1/offers", "/x/../mesh/v1/offers",
                     "/%2e%2e/mesh/v1/offers", "/%6desh/v1/offers", "/mesh%2fv1/offers", "\\mesh\\v1\\offers", "/%5cmesh/v1/offers", "/metrics", "/status",
                     "/healthz", "/readyz", "/mesh/v1/ping", "/mesh", "/mesh/", "/api/../mesh/v1/offers", "/api//mesh/v1/offers"):
            a = at("laptop", APPS, "GET", base + rest)
            check(a.status >= 400 or a.status == 301, f"{base + rest}: {a.status} {a.text[:100]}")
            check("offers" not in a.text or a.status >= 400, f"{base + rest} reached the peer's mesh side: {a.text[:100]}")
    refused(at("gpu", MESH, "GET", "/mesh/v1/offers", None, {"x-tailherd-hop": "1", "Content-Type": "application/vnd.tailherd+json"}), "a control call that was forwarded", 400, 403, 404)


def headers():  # rule 10: what must stay here does, and answers carry nothing strange
    a = post("laptop", "/api/generate", {"model": "tiny", "prompt": "x", "stream": False, "options": {"num_predict": 1}},
             headers={"Authorization": "Bearer canary", "Cookie": "canary=1", "x-api-key": "canary"})
    equal((a.status, a.by), (200, "gpu"), "a request with keys")
    check("set-cookie" not in a.headers, "a cookie in the answer")
    for node in ("gpu", "laptop"):
        for what in ("tailherd.log", "ollama.log"):
            import os
            from lab import LAB_DIR
            with open(os.path.join(LAB_DIR, node, what), encoding="utf-8", errors="replace") as f:
                check("canary" not in f.read(), f"{what} of {node} holds a key")
    refused(at("laptop", APPS, "GET", "/api/tags", None, {"X-Forwarded-For": "1.2.3.4"}), "a forwarded request on apps", 403)
    refused(at("laptop", APPS, "GET", "/api/tags", None, {"Tailscale-User-Login": "me@"}), "a request that claims to come by serve", 403)


def body():
    for part in (manages, one_body, one_hop, pages, reserved, headers):
        part()
    return f"{len(TRIED)} tries refused as the rules say, 6 rules"


case(body)
