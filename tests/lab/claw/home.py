"""A real OpenClaw on the laptop: its home, its commands, and the models an agent needs, which the case takes away again."""
import json
import os
import shutil
import subprocess

from lab import ENGINE, HERE, LAB_DIR, ask, check, ctl, get, run_in, wait

HOME = os.path.join(LAB_DIR, "claw")
WORK = os.path.join(HOME, "work")
PLACES = {"agent": ("gpu", "nas"), "long": ("gpu", "nas"), "thinker": ("gpu",), "full": ("gpu",)}
TEMPLATES = {"agent": "read", "long": "count", "thinker": "think", "full": "whole"}
LONG = 1000  # OpenClaw's own work on a stream grows with its square
OURS = "http://127.0.0.1:11434"


def installed():
    subprocess.run([os.path.join(HERE, "install"), "openclaw"], check=True, stdout=subprocess.DEVNULL)
    return subprocess.run([os.path.join(HERE, "install"), "--dir", "openclaw"], check=True, capture_output=True, text=True).stdout.strip()


def models_up():
    for model, nodes in PLACES.items():
        for n in nodes:
            ctl("model", n, model, "claw", TEMPLATES[model], *(("num_predict", str(LONG)) if model == "long" else ()))
    for model in PLACES:
        wait(20, f"the laptop lists {model}", lambda: ctl("lists", "laptop", model, ok=False).returncode == 0)


def models_down():
    for model, nodes in PLACES.items():
        for n in nodes:
            ask(n, "DELETE", "/api/delete", {"model": model}, port=ENGINE)


class Claw:
    """`config` is what a person has in openclaw.json; nobody tells it where models are."""

    def __init__(self, config):
        self.dir = installed()
        shutil.rmtree(HOME, ignore_errors=True)
        for d in (WORK, os.path.join(HOME, ".openclaw"), os.path.join(HOME, "tmp")):
            os.makedirs(d)
        with open(os.path.join(WORK, "notes.txt"), "w", encoding="utf-8") as f:
            f.write("It is sunny in Paris.\n")
        self.file = os.path.join(HOME, ".openclaw", "openclaw.json")
        with open(self.file, "w", encoding="utf-8") as f:
            json.dump(config, f)
        self.env = {"PATH": f"{self.dir}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": HOME, "TMPDIR": os.path.join(HOME, "tmp"), "OPENCLAW_STATE_DIR": os.path.dirname(self.file),
                    "OPENCLAW_CONFIG_PATH": self.file, "OLLAMA_API_KEY": "ollama-local", "NO_COLOR": "1"}

    def run(self, *argv, before=()):
        r = run_in("laptop", ["env", "-i", *(f"{k}={v}" for k, v in self.env.items()), *before, *argv], timeout=300)
        with open(os.path.join(HOME, "log"), "a", encoding="utf-8") as f:
            f.write(f"== {argv}: {r.returncode}\n{r.stdout}\n{r.stderr}\n")
        return r

    def json(self, *argv, **kw):
        """Its exit code and the JSON it prints, which words of its own may precede."""
        r = self.run(*argv, **kw)
        at = r.stdout.find("{")
        check(at >= 0, f"{' '.join(argv)[:80]}: {(r.stderr or r.stdout)[-300:]}")
        return r.returncode, json.loads(r.stdout[at:])

    def discover(self):
        return json.loads(self.run("node", os.path.join(HERE, "claw", "discover.mjs"), self.dir).stdout)

    def turn(self, model, text, **kw):
        """A whole agent turn: tools, system prompt, its own fallbacks. Exit code and envelope."""
        return self.json("openclaw", "agent", "exec", "--json", "--timeout", "180", "--cwd", WORK, "--model", model, "--fallback", "ollama/mine", text, **kw)


def asked(since=0):
    """What was asked of the laptop's tailherd after the line `since`: (model, node, attempts) of each chat, and the last line."""
    told = get("laptop", "/requests", port=11437).json
    rows = [(r["model"].removesuffix(":latest"), r["node"], r["attempts"]) for r in told["requests"] if r["seq"] > since and r["op"] not in ("show", "tags", "list")]
    return rows, told["last"]
