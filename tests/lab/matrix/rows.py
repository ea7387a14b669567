"""Every route and error case of a real Ollama 0.32 that the matrix asks, one row each, in an order that leaves the state
as it was: (name, method, path, body, headers). A dict is sent as JSON; text and bytes as they are.
"""

_TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "w",
           "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
_HI = [{"role": "user", "content": "hi"}]
_SHORT = {"num_predict": 3}
_ZERO = "sha256:" + "0" * 64


def zstd(data):
    """One zstd frame with one raw block: all a decoder must know, without a compressor."""
    return b"\x28\xb5\x2f\xfd\x60" + (len(data) - 256).to_bytes(2, "little") + (len(data) << 3 | 1).to_bytes(3, "little") + data


_LONG = b'{"model":"tiny","max_tokens":3,"messages":[{"role":"user","content":"' + b"x" * 300 + b'"}]}'
_LONG_NATIVE = b'{"model":"tiny","stream":false,"options":{"num_predict":3},"messages":[{"role":"user","content":"' + b"x" * 300 + b'"}]}'


def _j(name, path, body, headers=None, method="POST"):
    return (name, method, path, body, headers or {})


def _g(name, path, headers=None, method="GET"):
    return (name, method, path, None, headers or {})


CASES = [
    _g("head-root", "/", method="HEAD"),
    _g("get-root", "/"),
    _g("version", "/api/version"),
    _g("head-version", "/api/version", method="HEAD"),
    _g("status", "/api/status"),
    _g("tags", "/api/tags"),
    _g("head-tags", "/api/tags", method="HEAD"),
    _g("ps-empty", "/api/ps"),
    _j("show", "/api/show", {"model": "tools"}),
    _j("show-name-field", "/api/show", {"name": "TINY"}),
    _j("show-verbose", "/api/show", {"model": "embed", "verbose": True}),
    _j("show-404", "/api/show", {"model": "nope"}),
    _j("show-empty-body", "/api/show", None),
    _j("show-badname", "/api/show", {"model": "tiny@desk"}),
    _j("generate-stream", "/api/generate", {"model": "tiny", "prompt": "hi", "options": _SHORT}),
    _j("generate", "/api/generate", {"model": "tiny", "prompt": "hi", "stream": False, "options": _SHORT}),
    _j("generate-spelling", "/api/generate", {"model": "registry.ollama.ai/library/TINY:latest", "prompt": "hi", "stream": False, "options": _SHORT}),
    _j("generate-preload", "/api/generate", {"model": "tiny"}),
    _j("generate-404", "/api/generate", {"model": "nope", "prompt": "x"}),
    _j("generate-400", "/api/generate", '{"model":'),
    _j("generate-nomodel", "/api/generate", {"prompt": "x"}),
    _j("generate-badname", "/api/generate", {"model": "a b c", "prompt": "x"}),
    _j("generate-keepalive-400", "/api/generate", {"model": "tiny", "prompt": "x", "keep_alive": "10"}),
    _j("chat-stream", "/api/chat", {"model": "tiny", "messages": _HI, "options": _SHORT}),
    _j("chat", "/api/chat", {"model": "tiny", "messages": _HI, "stream": False, "options": _SHORT}),
    _j("chat-tools-stream", "/api/chat", {"model": "tools", "messages": [{"role": "user", "content": "weather?"}], "tools": _TOOLS}),
    _j("chat-think-stream", "/api/chat", {"model": "think", "messages": [{"role": "user", "content": "q"}]}),
    _j("chat-tools-unsupported", "/api/chat", {"model": "tiny", "stream": False, "messages": _HI, "tools": _TOOLS}),
    _j("chat-think-unsupported", "/api/chat", {"model": "tiny", "stream": False, "think": True, "messages": _HI}),
    _j("chat-load", "/api/chat", {"model": "tiny", "messages": []}),
    _j("chat-embed-model", "/api/chat", {"model": "embed", "stream": False, "messages": _HI}),
    _j("chat-zstd", "/api/chat", zstd(_LONG_NATIVE), {"Content-Type": "application/json", "Content-Encoding": "zstd"}),
    _j("embed", "/api/embed", {"model": "embed", "input": ["hello", "hallo"], "dimensions": 3}),
    _j("embed-404", "/api/embed", {"model": "nope", "input": "x"}),
    _j("embeddings", "/api/embeddings", {"model": "embed", "prompt": "hello"}),
    _g("ps", "/api/ps"),
    _g("v1-models", "/v1/models"),
    _g("v1-model", "/v1/models/tiny"),
    _g("v1-model-404", "/v1/models/nope"),
    _j("v1-chat", "/v1/chat/completions", {"model": "tiny", "messages": _HI, "max_tokens": 3}),
    _j("v1-chat-stream", "/v1/chat/completions", {"model": "tiny", "messages": _HI, "max_tokens": 3, "stream": True}),
    _j("v1-chat-stream-usage", "/v1/chat/completions",
       {"model": "tiny", "messages": _HI, "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}),
    _j("v1-chat-tools-stream", "/v1/chat/completions", {"model": "tools", "stream": True, "messages": [{"role": "user", "content": "w?"}], "tools": _TOOLS}),
    _j("v1-chat-zstd", "/v1/chat/completions", zstd(_LONG), {"Content-Type": "application/json", "Content-Encoding": "zstd"}),
    _j("v1-chat-404", "/v1/chat/completions", {"model": "nope", "messages": _HI}),
    _j("v1-chat-400", "/v1/chat/completions", '{"model":"tiny","messages":'),
    _j("v1-chat-nomodel", "/v1/chat/completions", {"messages": _HI}),
    _j("v1-completions", "/v1/completions", {"model": "tiny", "prompt": "hi", "max_tokens": 3}),
    _j("v1-completions-stream", "/v1/completions", {"model": "tiny", "prompt": "hi", "max_tokens": 3, "stream": True}),
    _j("v1-embeddings", "/v1/embeddings", {"model": "embed", "input": "hello", "dimensions": 3}),
    _j("v1-embeddings-base64", "/v1/embeddings", {"model": "embed", "input": "hello", "dimensions": 3, "encoding_format": "base64"}),
    _j("v1-responses", "/v1/responses", {"model": "tiny", "input": "hi", "max_output_tokens": 3}),
    _j("v1-responses-stream", "/v1/responses", {"model": "tiny", "input": "hi", "max_output_tokens": 3, "stream": True}),
    _j("v1-messages", "/v1/messages", {"model": "tiny", "max_tokens": 3, "messages": _HI}),
    _j("v1-messages-stream", "/v1/messages", {"model": "tiny", "max_tokens": 3, "stream": True, "messages": _HI}),
    _j("v1-messages-tools", "/v1/messages", {"model": "tools", "max_tokens": 50, "messages": _HI,
       "tools": [{"name": "get_weather", "description": "w", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]}),
    _j("v1-messages-beta", "/v1/messages?beta=true", {"model": "tiny", "max_tokens": 3, "messages": _HI}),
    _j("v1-messages-404", "/v1/messages", {"model": "nope", "max_tokens": 3, "messages": _HI}),
    _j("v1-messages-count", "/v1/messages/count_tokens", {"model": "tiny", "messages": _HI}),
    _j("cloud-disabled", "/api/chat", {"model": "gpt-oss:120b-cloud", "messages": _HI}),
    _j("v1-cloud-disabled", "/v1/chat/completions", {"model": "gpt-oss:cloud", "messages": _HI}),
    _j("me", "/api/me", None),
    _j("copy", "/api/copy", {"source": "tiny", "destination": "copied"}),
    _j("copy-404", "/api/copy", {"source": "nope", "destination": "copied"}),
    _j("delete", "/api/delete", {"model": "copied"}, method="DELETE"),
    _j("delete-404", "/api/delete", {"model": "copied"}, method="DELETE"),
    _g("blob-head", f"/api/blobs/{_ZERO}", method="HEAD"),
    _j("blob-bad", f"/api/blobs/{_ZERO}", b"not that digest"),
    _j("create-from", "/api/create", {"model": "derived", "from": "tiny", "system": "be brief"}),
    _j("delete-derived", "/api/delete", {"name": "derived"}, method="DELETE"),
    _j("pull-offline", "/api/pull", {"model": "nope", "stream": False}),
    _g("method-405", "/api/tags", method="PUT"),
    _g("method-405-chat", "/api/chat"),
    _g("route-404", "/api/nothing"),
    _j("route-404-post", "/v1/nothing", {"x": 1}),
    _g("slash-301", "/api/tags/"),
    _g("slashes-307", "//api/tags"),
    _g("experimental-recommendations", "/api/experimental/model-recommendations"),
    _g("host-tailnet", "/api/version", {"Host": "desk.tail1234.ts.net"}),
    _g("host-cgnat", "/api/version", {"Host": "100.127.0.7:11434"}),
    _g("host-private", "/api/version", {"Host": "192.168.1.5"}),
    _g("host-local", "/api/version", {"Host": "desk.local"}),
    _g("cors-evil", "/api/version", {"Origin": "https://evil.example"}),
    _g("cors-local", "/api/version", {"Origin": "http://localhost:3000"}),
    _g("cors-preflight", "/api/chat", {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST",
                                       "Access-Control-Request-Headers": "content-type"}, method="OPTIONS"),
    _j("generate-unload", "/api/generate", {"model": "tiny", "keep_alive": 0}),
    _j("chat-unload", "/api/chat", {"model": "tiny", "messages": [], "keep_alive": 0}),
    _g("ps-after", "/api/ps"),
    # The engine dies in the middle of its answer: `kill` rows are asked with a helper that kills it after the first bytes.
    _j("kill-generate", "/api/generate", {"model": "count", "prompt": "x", "options": {"num_predict": 30000}}),
    _j("kill-generate-whole", "/api/generate", {"model": "count", "prompt": "x", "stream": False, "options": {"num_predict": 30000}}),
    _j("kill-chat", "/api/chat", {"model": "count", "messages": _HI, "options": {"num_predict": 30000}}),
    _j("kill-v1-chat", "/v1/chat/completions", {"model": "count", "messages": _HI, "stream": True, "max_tokens": 30000}),
    _j("kill-v1-messages", "/v1/messages", {"model": "count", "messages": _HI, "stream": True, "max_tokens": 30000}),
    _j("kill-v1-responses", "/v1/responses", {"model": "count", "input": "x", "stream": True, "max_output_tokens": 30000}),
]

# Unions are written from what the last look at an engine said, so these may trail the engine by a few seconds.
TRAILS = {"tags": 8, "v1-models": 8, "ps": 8, "ps-empty": 8, "ps-after": 8}
