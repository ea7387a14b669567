#!/usr/bin/env python3
# slow: a real LiteLLM and a real llama.cpp server as providers and steps of a chain, and llama.cpp as an engine of a node
import json
import os
import shutil
import subprocess

from lab import HERE, LAB_DIR, case, check, counted, ctl, equal, get, metric, post, run_in, wait
from claw.home import Claw

KEY = "sk-lab-master-canary"
THREE = " one two three"
FILE = "tiny.gguf"
CONFIG = {
    "failover": {"cooldown": ["1h"]},
    "agents": {f"to-{name}": {"model": {"primary": step, "fallbacks": ["ollama/second"]}}
               for name, step in (("mock", "litellm/mock"), ("rate", "litellm/rate"), ("nobody", "litellm/nobody"), ("llama", "llama/herd"))},
    "models": {"providers": {
        "litellm": {"baseUrl": "http://127.0.0.1:4000/v1", "api": "openai-completions", "apiKey": KEY},
        "both": {"baseUrl": "http://127.0.0.1:4000/v1", "api": "openai-responses", "apiKey": KEY},
        "llama": {"baseUrl": "http://127.0.0.1:8081/v1", "api": "openai-completions"},
    }},
}
# What LiteLLM serves: two answers of its own, and two models of a real Ollama.
SERVES = {"mock": {"model": "openai/mock", "api_key": "x", "mock_response": "hello from mock"}, "rate": {"model": "openai/rate", "api_key": "x", "mock_response": "litellm.RateLimitError"},
          **{m: {"model": f"openai/{m}", "api_key": "x", "api_base": "http://127.0.0.1:11435/v1"} for m in ("tiny", "tools", "count")}}


def part(name):
    subprocess.run([os.path.join(HERE, "install"), name], check=True, stdout=subprocess.DEVNULL)
    return subprocess.run([os.path.join(HERE, "install"), "--dir", name], check=True, capture_output=True, text=True).stdout.strip()


class Running:
    """A program on gpu until `end`; what it says is in a file of its name."""

    def __init__(self, name, argv, env):
        with open(os.path.join(LAB_DIR, "gpu", "holder.pid"), encoding="utf-8") as f:
            pid = f.read().strip()
        with open(os.path.join(LAB_DIR, "cases", name + ".log"), "ab") as log:
            self.p = subprocess.Popen(["nsenter", "-t", pid, "-m", "-n", "--", *argv], env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def end(self):
        self.p.terminate()
        try:
            self.p.wait(15)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()


def litellm(folder):
    home = os.path.join(LAB_DIR, "litellm")
    shutil.rmtree(home, ignore_errors=True)
    os.makedirs(home)
    config = os.path.join(home, "config.yaml")
    with open(config, "w", encoding="utf-8") as f:
        json.dump({"model_list": [{"model_name": name, "litellm_params": with_} for name, with_ in SERVES.items()]}, f)
    env = {"PATH": f"{folder}/py/bin:/usr/bin:/bin", "HOME": home, "LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return Running("litellm", [f"{folder}/py/bin/python3", f"{folder}/py/bin/litellm", "--config", config, "--host", "127.0.0.1", "--port", "4000"], env)


def llama(name, port):
    folder = part("ollama")
    return Running(f"llama-{port}", [f"{folder}/py/bin/python3", os.path.join(HERE, "llama_cpp.py"), f"{folder}/gguf/tiny.gguf", name, str(port)], {"PATH": "/usr/bin:/bin", "HOME": "/tmp"})


def native(model, prompt="x", stream=False, n=3, node="gpu", **kw):
    return post(node, "/api/chat", {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": stream, "options": {"num_predict": n}}, **kw)


def posted(path, model, stream=False, prompt="x", node="gpu"):
    return post(node, path, {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": stream, "max_tokens": 3})


def by(a, who, what):
    equal((a.status, a.headers.get("x-tailherd-served-by", "").removesuffix("@gpu")), (200, who), f"{what}: {a.text[:300]}")


def of_litellm():
    """Its own answers in each dialect, its errors, and the real SDKs through it to a real Ollama."""
    for model in ("litellm/mock", "to-mock"):
        for path, text in (("/v1/chat/completions", lambda j: j["choices"][0]["message"]["content"]), ("/api/chat", lambda j: j["message"]["content"]),
                           ("/v1/messages", lambda j: j["content"][0]["text"])):
            a = posted(path, model)
            by(a, "litellm/mock", f"{model} {path}")
            equal((text(a.json), a.json["model"]), ("hello from mock", model), f"{model} {path}")
        lines = native(model, stream=True).lines
        equal(("".join(l["message"]["content"] for l in lines), [l["done"] for l in lines].count(True)), ("hello from mock", 1), f"{model}, streamed")
        check(posted("/v1/chat/completions", model, stream=True).text.endswith("data: [DONE]\n\n"), f"{model}: the stream's end")
    for agent, why in (("rate", "busy"), ("nobody", "not_found")):
        for _ in range(2):
            a = native(f"to-{agent}")
            equal((a.status, a.by, a.json["message"]["content"]), (200, "nas", THREE), f"to-{agent}: {a.text[:200]}")
        equal(metric("gpu", "tailherd_attempts_total", peer="litellm", reason=why), 1, f"how often LiteLLM was asked and said {why}")
    a = native("litellm/count", stream=True, n=200)
    by(a, "litellm/count", "count")
    equal([int(w) for l in a.lines for w in l["message"]["content"].split()], counted(200), "the numbers through LiteLLM")
    # Its own responses, not ours: LiteLLM asks the Ollama behind it in that dialect.
    a = post("gpu", "/v1/responses", {"model": "both/tiny", "input": "x", "max_output_tokens": 3}, timeout=120)
    by(a, "both/tiny", "responses")
    text = a.json["output"][-1]["content"][0]["text"]  # as OpenAI's, LiteLLM's answers are of sixteen tokens at least
    check(text.startswith(THREE) and a.json["model"] == "both/tiny", f"responses: {a.text[:500]}")
    b = post("gpu", "/v1/responses", {"model": "both/tiny", "input": "x", "max_output_tokens": 3, "stream": True}, timeout=120)
    check(b.status == 200 and "response.output_text.delta" in b.text and "response.completed" in b.text, f"responses, streamed: {b.text[:500]}")
    ran = 0
    for which, argv in (("Python", [os.environ["LAB_SDK_PY"], os.path.join(HERE, "sdk", "clients.py")]), ("npm", ["node", os.path.join(HERE, "sdk", "clients.mjs")])):
        r = run_in("gpu", argv + ["litellm/tiny", "litellm/tools", "embed", "chat"], timeout=400)
        check(r.returncode == 0, f"the {which} clients through LiteLLM: {(r.stderr.strip() or r.stdout)[-700:]}")
        ran += int(r.stdout)
    return ran


def of_llama(running):
    """llama.cpp's own server as a provider: answers, a prompt too long in its words, its death."""
    for path, text in (("/v1/chat/completions", lambda j: j["choices"][0]["message"]["content"]), ("/api/chat", lambda j: j["message"]["content"]), ("/v1/messages", lambda j: j["content"][0]["text"])):
        body = {"model": "to-llama", "messages": [{"role": "user", "content": "x"}], "stream": False, "max_tokens": 3, "options": {"num_predict": 3}}
        a = post("gpu", path, body)
        by(a, "llama/herd", path)
        equal(text(a.json), THREE, path)
    words = "x" * 6000  # a token for each
    direct = post("gpu", "/v1/chat/completions", {"model": "herd", "messages": [{"role": "user", "content": words}]}, port=8081)
    equal(direct.status, 400, f"llama.cpp on a prompt too long: {direct.text[:200]}")
    a = posted("/v1/chat/completions", "to-llama", prompt=words)
    equal((a.status, a.json["error"]["message"]), (400, direct.json["error"]["message"]), "a prompt too long, passed")
    a = native("to-llama", prompt=words)
    equal((a.status, a.json["error"]), (400, direct.json["error"]["message"]), "a prompt too long, translated")
    running.end()
    equal(native("to-llama").by, "nas", "who answers when llama.cpp is gone")


def unlisted():
    with open(os.path.join(LAB_DIR, "gpu", "tailherd.log"), encoding="utf-8", errors="replace") as f:
        return f.read().count("cannot be listed")


def of_engine(before):
    """llama.cpp's own server without an alias: the mesh has its model under its file's name, in every dialect, and nobody is told its path."""
    for node in ("gpu", "laptop"):
        wait(60, f"{node} lists nas and llama.cpp's model", lambda: {"second", FILE} <= {m["id"].removesuffix(":latest") for m in get(node, "/v1/models").json["data"]})
    path = get("gpu", "/v1/models", port=8080).json["data"][0]["id"]
    check(path.endswith("/gguf/" + FILE), f"llama.cpp calls it {path}: this shows nothing")
    texts = {"/v1/chat/completions": lambda j: j["choices"][0]["message"]["content"], "/api/chat": lambda j: j["message"]["content"], "/v1/messages": lambda j: j["content"][0]["text"]}
    for node in ("gpu", "laptop"):
        for at, text in texts.items():
            a = post(node, at, {"model": FILE, "messages": [{"role": "user", "content": "x"}], "stream": False, "max_tokens": 3, "options": {"num_predict": 3}})
            equal((a.status, a.by, a.json["model"], text(a.json)), (200, "gpu", FILE, THREE), f"{node} {at}: {a.text[:300]}")
            check("/gguf/" not in a.text, f"{node} {at} tells the path: {a.text[:300]}")
            b = posted(at, FILE, stream=True, node=node)
            check(b.status == 200 and FILE in b.text and "/gguf/" not in b.text, f"{node} {at}, streamed: {b.text[:300]}")
        ollama = [os.environ["LAB_OLLAMA"]]
        for argv, want in ((["list"], FILE), (["show", FILE], "tools"), (["run", FILE, "x", "--nowordwrap"], "one two three")):
            r = run_in(node, ollama + argv, env={"HOME": "/tmp"}, timeout=120)
            check(r.returncode == 0 and want in r.stdout and "/gguf/" not in r.stdout, f"{node}: ollama {argv[0]}: {r.returncode} {r.stdout[-300:]} {r.stderr[-300:]}")
    wait(60, "doctor tells of what cannot be listed", lambda: ": my model\n" in ctl("cli", "gpu", "doctor", ok=False).stdout)
    equal(unlisted() - before, 1, "lines of the log on what cannot be listed")
    claw = Claw({"agents": {"defaults": {"model": {"primary": f"ollama/{FILE}"}}}})
    equal(claw.discover()["models"].get(FILE), {"tools": True, "thinking": False, "context": 4096}, "what OpenClaw finds of it")
    code, said = claw.json("openclaw", "infer", "model", "run", "--local", "--model", f"ollama/{FILE}", "--prompt", "Say pong", "--json")
    check(code == 0 and "one two three" in json.dumps(said), f"OpenClaw asks it: {code} {json.dumps(said)[-400:]}")
    words = "x" * 6000  # a token for each
    a = native(FILE, prompt=words, node="laptop")
    equal((a.status, a.json["error"]), (400, post("gpu", "/v1/chat/completions", {"messages": [{"role": "user", "content": words}]}, port=8080).json["error"]["message"]), "a prompt too long, in llama.cpp's words")
    told = get("laptop", "/status", port=11437).text + get("laptop", "/api/tags").text
    check("/gguf/" not in told, "the path is told to another node")
    return len(texts) * 4 + 6


def body():
    ours = []
    try:
        ours.append(litellm(part("litellm")))
        path = os.path.join(LAB_DIR, "real.json5")
        with open(path, "w", encoding="utf-8") as f:
            json.dump(CONFIG, f)
        ctl("configure", "gpu", path)
        before = unlisted()
        ours += [llama("herd", 8081), llama("", 8080), llama("my model", 8000)]
        engine = of_engine(before)
        of_llama(ours[1])
        took = wait(120, "LiteLLM listens", lambda: get("gpu", "/v1/models", {"Authorization": f"Bearer {KEY}"}, port=4000).status == 200, every=0.5)
        n = of_litellm()
        for name in ("status", "metrics"):
            check(KEY not in get("gpu", f"/{name}", port=11437).text, f"the key stands in /{name}")
        with open(os.path.join(LAB_DIR, "gpu", "tailherd.log"), encoding="utf-8", errors="replace") as f:
            check(KEY not in f.read(), "the key stands in the log")
        return f"LiteLLM (up after {took:.0f} s more): 3 dialects, responses, 429 and an unknown model go on, 200 numbers, {n} answers of the Python and npm clients; llama.cpp without an alias: {engine} answers as an engine here and for a peer, OpenClaw finds and asks it; a provider in 3 dialects, too long in its words"
    finally:
        for running in ours:
            running.end()


case(body)
