#!/usr/bin/env python3
# slow: the matrix against Ollama 0.24 (its engine inside), on the node and from a peer
import os
import subprocess

from lab import APPS, ENGINE, HERE, LAB_DIR, Failed, case, ctl, equal, get, models, wait
from matrix import ask as matrix

# rows an Ollama of that age does not have, or answers by its age's rules
NEWER = {"v1-chat-zstd", "kill-generate-whole", "experimental-recommendations"}
# answered by the Ollama of the node that is asked, which is a new one
ASKED = {"version", "host-private", "host-local", "cors-local", "show-404", "v1-model-404"}


def body():
    subprocess.run([os.path.join(HERE, "install"), "packages", "ollama-old", "--all"], check=True, stdout=subprocess.DEVNULL)
    old = subprocess.run([os.path.join(HERE, "install"), "--dir", "ollama-old"], check=True, capture_output=True, text=True).stdout.strip()
    ctl("stop", "ollama", "gpu")
    os.rename(os.path.join(LAB_DIR, "gpu", "models"), os.path.join(LAB_DIR, "gpu", "models.new"))
    try:
        ctl("start", "ollama", "gpu", env={**os.environ, "LAB_OLLAMA_GPU": os.path.join(old, "bin", "ollama")})
        equal(get("gpu", "/api/version", port=ENGINE).json["version"], "0.24.0", "the engine's version")
        ctl("models", "gpu", env={**os.environ, "LAB_OLLAMA_GPU": os.path.join(old, "bin", "ollama")})
        for n in ("gpu", "laptop"):
            wait(30, f"{n} lists the old engine's models", lambda: {"tiny", "count", "embed"} <= models(n))
        wait(90, "gpu knows its engine's age", lambda: get("gpu", "/api/version").json["version"] == "0.24.0")
        figures, wrong = [], []
        for who, node in (("local", "gpu"), ("peer", "laptop")):
            verdicts = [v for v in matrix.run((node, APPS), "gpu", who) if v.case not in NEWER and not (who == "peer" and v.case in ASKED)]
            wrong += [f"{who} {v.case}: {v.note}" for v in verdicts if v.kind == "unequal"]
            figures.append(f"{who}: {sum(v.kind == 'equal' for v in verdicts)} equal, {sum(v.kind == 'intended' for v in verdicts)} as named")
        if wrong:
            print("\n".join(wrong))
            raise Failed(f"{'; '.join(figures)}, {len(wrong)} unequal. First: {wrong[0]}")
        return "; ".join(figures)
    finally:
        ctl("stop", "ollama", "gpu")
        subprocess.run(["rm", "-rf", os.path.join(LAB_DIR, "gpu", "models")], check=True)
        os.rename(os.path.join(LAB_DIR, "gpu", "models.new"), os.path.join(LAB_DIR, "gpu", "models"))


case(body)
