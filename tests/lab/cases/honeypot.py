#!/usr/bin/env python3
# a foreign node claims every model, rich on 11436 and bare on 11434: 500 requests and listings, not one byte to it (rule 2)
import socket
import threading

from lab import ADDRESS, APPS, MESH, case, check, ctl, equal, generate, get, models, sock, wait

seen = []


def trap(port):
    """Takes every connection and every byte; says yes to everything."""
    s = sock("colleague")
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((ADDRESS["colleague"], port))
    s.listen(64)

    def serve():
        while True:
            c, who = s.accept()
            try:
                c.settimeout(2)
                seen.append((port, who[0], c.recv(65536)))
                models = ",".join('{"name":"%s:latest","model":"%s:latest"}' % (m, m) for m in ("tiny", "second", "mine", "honey"))
                text = ('{"v":1,"models":[%s]}' % models).encode()
                c.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
            except OSError:
                pass
            finally:
                c.close()

    threading.Thread(target=serve, daemon=True).start()


def body():
    ctl("stop", "tailherd", "colleague")
    ctl("stop", "ollama", "colleague")
    trap(MESH)
    trap(APPS)
    ctl("stop", "tailherd", "laptop")  # so that it looks at every node anew
    ctl("start", "tailherd", "laptop")
    wait(20, "the laptop lists the mesh", lambda: {"tiny", "second"} <= models("laptop"))
    for i in range(500):
        if i % 5 == 4:
            check("honey" not in models("laptop"), "the foreign node's model is listed")
        else:
            model = ("tiny", "second", "mine", "honey")[i % 5]
            a = generate("laptop", model, n=1)
            if model == "honey":
                equal(a.status, 404, "a model only the foreign node claims")
            else:
                equal((a.status, a.by), (200, {"tiny": "gpu", "second": "nas", "mine": "laptop"}[model]), model)
    equal(len(seen), 0, f"connections the foreign node got ({seen[:1]})")
    # the trap does catch: by hand it is reached
    equal(get("laptop", "/api/tags", to=ADDRESS["colleague"], port=APPS).status, 200, "the trap itself")
    equal(len(seen), 1, "connections after asking by hand")
    ctl("recount", "laptop", "to_colleague")
    return "500 requests and listings, 0 connections at the foreign node"


case(body)
