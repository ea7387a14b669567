#!/usr/bin/env python3
# every route and error case of a real Ollama: the answer through tailherd is equal, or differs as named; local and at a peer
import os

from matrix import ask as matrix, differences
from lab import APPS, ENGINE, Failed, NODES, ask, case

PARTS = (("local", "gpu", "the model is this node's own"), ("peer", "laptop", "only a peer holds the model"))


def body():
    table = {}
    for who, node, _ in PARTS:
        for n in NODES:
            for left in ("copied", "derived"):
                ask(n, "DELETE", "/api/delete", {"model": left}, port=ENGINE)
        for v in matrix.run((node, APPS), "gpu", who):
            table.setdefault(v.case, {})[who] = v
    write(table)
    wrong = [f"{who} {v.case}: {v.note}" for row in table.values() for who, v in row.items() if v.kind == "unequal"]
    counts = {who: {k: sum(row[who].kind == k for row in table.values()) for k in ("equal", "intended", "unequal")} for who, _, _ in PARTS}
    figures = "; ".join(f"{who}: {c['equal']} equal, {c['intended']} as named, {c['unequal']} unequal" for who, c in counts.items())
    if wrong:
        raise Failed(f"{figures}. First: {wrong[0]}")
    return f"{len(table)} cases twice. {figures}"


def write(table):
    """The matrix as a page, beside the build's other products."""
    out = os.path.join(os.environ.get("CARGO_TARGET_DIR") or os.path.join(os.environ["LAB_REPO"], "target"), "lab")
    os.makedirs(out, exist_ok=True)
    words = {"equal": "equal", "intended": "differs as named", "unequal": "**unequal**"}
    with open(os.path.join(out, "conformance.md"), "w", encoding="utf-8") as f:
        f.write("# Conformance\n\nEach case asked of a real Ollama 0.32.15 directly and through tailherd. Times, ids and the hop's own headers aside, "
                "answers are compared field by field, streams item by item.\n\n")
        f.write("| | equal | differs as named | unequal |\n|---|---|---|---|\n")
        for who, _, text in PARTS:
            n = [sum(row[who].kind == k for row in table.values()) for k in words]
            f.write(f"| {text} | {n[0]} | {n[1]} | {n[2]} |\n")
        used = {v.note for row in table.values() for v in row.values() if v.kind == "intended"}
        f.write("\n## Named differences\n\n")
        for name in sorted(used):
            f.write(f"- **{name}**: {differences.NAMES[name]}\n")
        f.write("\n## Cases\n\n| case | this node's model | a peer's model |\n|---|---|---|\n")
        for name, row in table.items():
            cells = []
            for who, _, _ in PARTS:
                v = row[who]
                note = v.note.replace("|", "\\|").replace("\n", " ")
                cells.append(words[v.kind] + (f": {note}" if note else ""))
            f.write(f"| {name} | {cells[0]} | {cells[1]} |\n")


case(body)
