"""Stand-ins for hosted providers on one https port of a node. The first part of a path is a provider's name: it says what it
was told to say, else it speaks one dialect, behind which is a node's real Ollama. Only that dialect's one route is let
through, and of a body only what such a provider knows; anything else gets the error that a hosted one would give."""
import collections
import http.server
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading

from lab import ENGINE, Http, check, sock

# path -> the members of a request that are known there
SPEAKS = {
    "chat": ("/v1/chat/completions", {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "tools",
                                      "tool_choice", "response_format", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "reasoning_effort"}),
    "messages": ("/v1/messages", {"model", "messages", "system", "max_tokens", "stream", "temperature", "top_p", "top_k", "stop_sequences", "tools", "tool_choice", "metadata",
                                  "thinking"}),
}
Says = collections.namedtuple("Says", "status body headers", defaults=({},))
Seen = collections.namedtuple("Seen", "name path headers body")


def certificates(folder, names, strangers):
    """An authority; a certificate of it for each of `names`; one that nobody signed for each of `strangers`."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)

    def openssl(*args):
        r = subprocess.run(["openssl", *args], cwd=folder, capture_output=True, text=True)
        check(r.returncode == 0, f"openssl {args[0]}: {r.stderr[-200:]}")

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl(*new, "-subj", "/CN=Lab authority", "-keyout", "ca.key", "-out", "ca.pem")
    for name in (*names, *strangers):
        signed = () if name in strangers else ("-CA", "ca.pem", "-CAkey", "ca.key")
        openssl(*new, *signed, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{names[0] if name in names else name}",
                "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", f"{name}.key", "-out", f"{name}.pem")
    return os.path.join(folder, "ca.pem")


class Providers:
    """`dialects`: name -> chat or messages. `says`: name -> Says, as long as it stands there. `seen` is what they were asked,
    in order; `hellos` counts the handshakes by the name that was asked for; `refused` is what was no word of the dialect."""

    def __init__(self, node, address, folder, hosts, dialects, engine):
        self.says, self.seen, self.refused, self.hellos = {}, [], [], collections.Counter()
        contexts = {}
        for host in hosts:
            contexts[host] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            contexts[host].load_cert_chain(os.path.join(folder, host + ".pem"), os.path.join(folder, host + ".key"))
        first = contexts[hosts[0]]

        def named(s, name, _):
            self.hellos[name] += 1
            s.context = contexts.get(name, first)

        first.sni_callback = named
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                self.request = first.wrap_socket(self.request, server_side=True)
                super().setup()

            def whole(self, status, body, headers={}):
                self.send_response(status)
                for k, v in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
                    self.send_header(k, v)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.whole(404, b'{"error":{"message":"Not Found"}}')

            def do_POST(self):
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = json.loads(data)
                name, rest = self.path.split("?")[0][1:].split("/", 1)
                outer.seen.append(Seen(name, "/" + rest, {k.lower(): v for k, v in self.headers.items()}, body))
                if name in outer.says:
                    said = outer.says[name]
                    self.whole(said.status, said.body.encode(), said.headers)
                    return
                path, known = SPEAKS[dialects[name]]
                strange = sorted(set(body) - known)
                if "/" + rest != path or strange:
                    outer.refused.append((self.path, strange))
                    self.whole(400, json.dumps({"error": {"message": f"Unrecognized request argument: {strange}", "type": "invalid_request_error"}}).encode())
                    return
                with Http(engine, port=ENGINE, timeout=120) as up:
                    r = up.start("POST", path, data, {"Content-Type": "application/json"})
                    if not body.get("stream"):
                        self.whole(r.status, r.read())
                        return
                    self.send_response(r.status)
                    self.send_header("Content-Type", r.getheader("Content-Type"))
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    for line in r:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                    self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request, address):
                """A handshake that failed is what some of them are for."""

        listener = sock(node)
        listener.bind((address, 0))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        server = Server((address, self.port), Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def hits(self, name):
        return sum(1 for s in self.seen if s.name == name)


class Tunnels:
    """A proxy on a node's loopback that opens tunnels (`CONNECT`), whatever the name, to one address. `asked`: to whom, and by whom."""

    def __init__(self, node, address):
        self.asked, self.node, self.address = [], node, address
        self.listener = sock(node)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(16)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            conn, _ = self.listener.accept()
            threading.Thread(target=self.one, args=(conn,), daemon=True).start()

    def one(self, conn):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = conn.recv(1)
            if not byte:
                return
            head += byte
        first, *rest = head.decode().split("\r\n")
        method, to, _ = first.split(" ")
        login = next((line.split(": ", 1)[1] for line in rest if line.lower().startswith("proxy-authorization: ")), None)
        self.asked.append((method, to, login))
        up = sock(self.node)
        up.connect((self.address, int(to.rsplit(":", 1)[1])))
        conn.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=pump, args=(up, conn), daemon=True).start()
        pump(conn, up)


def pump(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        pass
