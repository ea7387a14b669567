"""Two answers to one request, made comparable: what changes from call to call is replaced by its kind, everything else
stays as it is. Streams are compared item by item.
"""
import json
import re

# Framing and bookkeeping of the hop itself. Everything else in a head must be equal.
_HOP = {"date", "content-length", "transfer-encoding", "connection", "keep-alive"}
_TIMES = {"created_at", "modified_at", "expires_at", "created", "completed_at", "total_duration", "load_duration",
          "prompt_eval_duration", "eval_duration"}
_IDS = {"id", "item_id", "request_id", "call_id"}


def _value(key, v):
    if isinstance(v, dict):
        return {k: _value(k, x) for k, x in v.items()}
    if isinstance(v, list):
        return [_value(key, x) for x in v]
    if key in _TIMES and v not in (None, ""):
        return f"<{type(v).__name__}>"
    if key in _IDS and isinstance(v, str):
        return re.sub(r"[0-9a-f-]{6,}$|(?<=[-_])[0-9A-Za-z]+$", "<id>", v)
    if key == "signin_url":
        return "<url>"
    return v


def _json(text):
    try:
        v = json.loads(text)
    except ValueError:
        return {"<not json>": text}
    if isinstance(v, dict):
        # Ollama sorts its list by whole seconds and leaves the rest to chance.
        for rows in (v.get("models"), v.get("data")):
            if isinstance(rows, list) and rows and isinstance(rows[0], dict):
                rows.sort(key=lambda r: str(r.get("name", r.get("id"))))
                rows.sort(key=lambda r: str(r.get("modified_at", r.get("created", "")))[:19], reverse=True)
        # Whether a layer is new depends on who asked before.
        if isinstance(v.get("status"), str):
            v["status"] = re.sub(r"^(creating new|using existing) layer", "<layer>", v["status"])
    return _value("", v)


def _events(text):
    """SSE: (event, data) pairs."""
    out = []
    for block in re.split(r"\n\n+", text.strip("\n")):
        event, data = None, []
        for line in block.split("\n"):
            if line.startswith("event:"):
                event = line[6:].strip()
            elif line.startswith("data:"):
                data.append(line[5:].strip())
            elif line:
                data.append("<odd line> " + line)
        data = "\n".join(data)
        out.append([event, data if data == "[DONE]" else _json(data)])
    return out


def plain(answer):
    """An Answer as comparable data."""
    kind = answer.headers.get("content-type", "")
    text = answer.text
    if "ndjson" in kind:
        body = [_json(l) for l in text.split("\n") if l]
        if text and not text.endswith("\n"):
            body.append("<no newline at the end>")
    elif "event-stream" in kind:
        body = _events(text)
    elif "json" in kind and text:
        body = _json(text)
    else:
        body = text
    head = {k: v for k, v in answer.headers.items() if k not in _HOP}
    return {"status": answer.status, "head": head, "body": body}


def first_difference(a, b, path=""):
    """Where two plain values part, as text; None when equal."""
    if type(a) is not type(b):
        return f"{path or '.'}: {_short(a)} | {_short(b)}"
    if isinstance(a, dict):
        for k in list(a) + [k for k in b if k not in a]:
            if k not in a or k not in b:
                return f"{path}.{k}: {_short(a.get(k, '(absent)'))} | {_short(b.get(k, '(absent)'))}"
            d = first_difference(a[k], b[k], f"{path}.{k}")
            if d:
                return d
        if path == ".body" and list(a) != list(b):
            return f"{path}: order of fields {list(a)} | {list(b)}"
        return None
    if isinstance(a, list):
        for i, (x, y) in enumerate(zip(a, b)):
            d = first_difference(x, y, f"{path}[{i}]")
            if d:
                return d
        return None if len(a) == len(b) else f"{path}: {len(a)} items | {len(b)} items, first extra {_short((a + b)[min(len(a), len(b))] if len(a) > len(b) else b[len(a)])}"
    return None if a == b else f"{path or '.'}: {_short(a)} | {_short(b)}"


def _short(v):
    t = json.dumps(v, ensure_ascii=False) if not isinstance(v, str) else repr(v)
    return t if len(t) <= 220 else t[:200] + "…"
