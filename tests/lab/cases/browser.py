#!/usr/bin/env python3
# slow: a page of a stranger in real Chromium, with a DNS of its own, reads nothing and runs nothing on any of our ports (rule 9)
import http.server
import json
import shutil
import threading

from lab import ADDRESS, ADMIN, APPS, MESH, case, check, equal, metric, run_in, sock

PORT = 8077
ASK = json.dumps({"model": "tiny", "prompt": "x", "stream": False})
# What the page tries, each with what a program would get: a read with CORS, one without, a simple POST.
PAGE = """<!doctype html><script>
const tries = %s;
const results = {};
const run = async () => {
  for (const [name, url, init] of tries) {
    try { const r = await fetch(url, init); results[name] = r.type === "opaque" ? "opaque" : `${r.status} ${(await r.text()).slice(0, 60)}`; }
    catch (e) { results[name] = "refused"; }
  }
  await fetch("/report", { method: "POST", body: JSON.stringify(results) });
  document.title = "done";
};
run();
</script>"""


def tries():
    at = {"apps": f"127.0.0.1:{APPS}", "rebound": f"evil.test:{APPS}", "admin": f"127.0.0.1:{ADMIN}", "mesh": f"{ADDRESS['laptop']}:{MESH}"}
    post = {"method": "POST", "mode": "no-cors", "headers": {"Content-Type": "text/plain"}, "body": ASK}
    for name, where in at.items():
        path = "/status" if name == "admin" else "/api/tags"
        yield [f"{name} read", f"http://{where}{path}", {}]
        yield [f"{name} simple post", f"http://{where}/api/generate", post]
    yield ["mesh control", f"http://{at['mesh']}/mesh/v1/offers", {"headers": {"Content-Type": "application/vnd.tailherd+json"}}]


class Pages(http.server.BaseHTTPRequestHandler):
    reports = {}

    def do_GET(self):
        body = (PAGE % json.dumps(list(tries()))).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"]))
        Pages.reports[self.headers["Host"].split(":")[0]] = json.loads(text)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def visit(host):
    """Opens the page under this host name, which Chromium is told is this machine, and returns what it reached."""
    profile = f"/tmp/tailherd-page-{host}"
    argv = [shutil.which("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP evil.test 127.0.0.1", "--virtual-time-budget=20000", "--dump-dom", f"http://{host}:{PORT}/"]
    try:
        run_in("laptop", argv, timeout=120)
    finally:
        shutil.rmtree(profile, ignore_errors=True)
    return Pages.reports.get(host, {})


def body():
    check(shutil.which("chromium"), "no chromium (tests/lab/install --all packages)")
    listener = sock("laptop")
    listener.bind(("127.0.0.1", PORT))
    listener.listen(16)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Pages, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    threading.Thread(target=server.serve_forever, daemon=True).start()
    before = metric("laptop", "tailherd_requests_total", op="generate", outcome="done")
    own = visit("localhost")
    check(own.get("apps read", "").startswith("200"), f"a page of this machine is to read the list, or this case shows nothing: {own}")
    asked = metric("laptop", "tailherd_requests_total", op="generate", outcome="done") - before
    equal(asked, 1, "prompts that the page of this machine had answered")
    evil = visit("evil.test")
    equal(len(evil), len(list(tries())), f"tries of the stranger's page: {evil}")
    for name, got in evil.items():
        check(got in ("refused", "opaque") or got.startswith("403"), f"{name}: {got}")
    after = metric("laptop", "tailherd_requests_total", op="generate", outcome="done") - before
    equal(after, asked, "prompts answered after the stranger's page")
    return f"{len(evil)} tries of a stranger's page read nothing and ran nothing; this machine's own page read the list and had its prompt answered"


case(body)
