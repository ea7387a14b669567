"""The real Python clients against 127.0.0.1:11434 of the node this runs on. Prints how many answers were as they must be.
Arguments: the chat model, a tools model, an embedding model; `direct` speaks to Ollama itself, to prove the expectations.
`chat` or `messages` say that the models are a provider's which speaks nothing else: what only an engine has is left out then.
"""
import asyncio
import json
import sys

import anthropic
import ollama
import openai

CHAT, TOOLS, EMBED = sys.argv[1:4]
PORT = 11435 if "direct" in sys.argv else 11434
URL = f"http://127.0.0.1:{PORT}"
HOSTED = next((w for w in ("chat", "messages") if w in sys.argv), None)
CUT = "response.incomplete" if HOSTED else "response.completed"  # what OpenAI says of an answer that was cut off, and what Ollama says
THREE = " one two three"
HI = [{"role": "user", "content": "hi"}]
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "w", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
SUNNY = "It is sunny in Paris."
done = 0


def same(what, got, want):
    global done
    assert got == want, f"{what}: {got!r}, not {want!r}"
    done += 1


def with_ollama():
    c, short = ollama.Client(host=URL), {"num_predict": 3}
    if not HOSTED:
        of_an_engine(c, short)
    same("generate", c.generate(CHAT, "hi", options=short).response, THREE)
    same("generate stream", "".join(p.response for p in c.generate(CHAT, "hi", options=short, stream=True)), THREE)
    same("chat", c.chat(CHAT, HI, options=short).message.content, THREE)
    parts = list(c.chat(CHAT, HI, options=short, stream=True))
    same("chat stream", ("".join(p.message.content for p in parts), parts[-1].done_reason, parts[-1].eval_count), (THREE, "length", 3))
    asks = c.chat(TOOLS, HI, tools=[WEATHER]).message
    call = asks.tool_calls[0].function
    same("tools", (call.name, call.arguments), ("get_weather", {"city": "Paris"}))
    calls = [t.function for p in c.chat(TOOLS, HI, tools=[WEATHER], stream=True) for t in p.message.tool_calls or []]
    same("tools stream", [(f.name, f.arguments) for f in calls], [("get_weather", {"city": "Paris"})])
    said = c.chat(TOOLS, [*HI, asks, {"role": "tool", "tool_name": "get_weather", "content": "sunny"}], tools=[WEATHER])
    same("tool's result", said.message.content, SUNNY)


def of_an_engine(c, short):
    same("list", CHAT in {m.model.removesuffix(":latest") for m in c.list().models}, True)
    same("show", c.show(TOOLS).capabilities, ["completion", "tools"])
    same("embed", len(c.embed(EMBED, ["hello", "hallo"]).embeddings), 2)
    same("embeddings", len(c.embeddings(EMBED, "hello").embedding) > 0, True)
    c.generate(CHAT, "hi", options=short)  # the engine may have put it out for the two before
    same("ps", any(m.model.startswith(CHAT) for m in c.ps().models) or PORT == 11434, True)
    try:
        c.chat("nope", HI)
        same("missing model", "an answer", "an error")
    except ollama.ResponseError as e:
        same("missing model", (e.status_code, "model 'nope' not found" in str(e)), (404, True))

    async def together():
        a = ollama.AsyncClient(host=URL)
        return await asyncio.gather(*(a.generate(CHAT, "hi", options=short) for _ in range(8)))

    same("eight at once", {r.response for r in asyncio.run(together())}, {THREE})


def with_openai():
    c = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)
    if not HOSTED:
        same("models", CHAT in {m.id.removesuffix(":latest") for m in c.models.list()}, True)
        same("retrieve", c.models.retrieve(CHAT).id, CHAT)
        same("completion", c.completions.create(model=CHAT, prompt="hi", max_tokens=3).choices[0].text, THREE)
        same("embedding", len(c.embeddings.create(model=EMBED, input="hello").data[0].embedding) > 0, True)
    r = c.chat.completions.create(model=CHAT, messages=HI, max_tokens=3)
    same("chat", (r.choices[0].message.content, r.model, r.usage.completion_tokens), (THREE, CHAT, 3))
    parts = list(c.chat.completions.create(model=CHAT, messages=HI, max_tokens=3, stream=True, stream_options={"include_usage": True}))
    text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
    same("chat stream", (text, parts[-1].usage.completion_tokens), (THREE, 3))
    asks = c.chat.completions.create(model=TOOLS, messages=HI, tools=[WEATHER]).choices[0].message
    call = asks.tool_calls[0].function
    same("tools", (call.name, json.loads(call.arguments)), ("get_weather", {"city": "Paris"}))
    parts = [t.function for p in c.chat.completions.create(model=TOOLS, messages=HI, tools=[WEATHER], stream=True) if p.choices for t in p.choices[0].delta.tool_calls or []]
    same("tools stream", (parts[0].name, json.loads("".join(f.arguments or "" for f in parts))), ("get_weather", {"city": "Paris"}))
    result = {"role": "tool", "tool_call_id": asks.tool_calls[0].id, "content": "sunny"}
    said = c.chat.completions.create(model=TOOLS, messages=[*HI, asks.model_dump(exclude_none=True), result], tools=[WEATHER])
    same("tool's result", said.choices[0].message.content, SUNNY)
    same("response", c.responses.create(model=CHAT, input="hi", max_output_tokens=3).output_text, THREE)
    kinds = [e.type for e in c.responses.create(model=CHAT, input="hi", max_output_tokens=3, stream=True)]
    same("response stream", (kinds[0], kinds[-1], kinds.count("response.output_text.delta")), ("response.created", CUT, 3))
    tool = {"type": "function", **WEATHER["function"]}
    asks = next(i for i in c.responses.create(model=TOOLS, input="hi", tools=[tool]).output if i.type == "function_call")
    same("response's tool", (asks.name, json.loads(asks.arguments)), ("get_weather", {"city": "Paris"}))
    result = {"type": "function_call_output", "call_id": asks.call_id, "output": "sunny"}
    same("response after it", c.responses.create(model=TOOLS, input=[*HI, asks.model_dump(exclude_none=True), result], tools=[tool]).output_text, SUNNY)
    try:
        c.chat.completions.create(model="nope", messages=HI)
        same("missing model", "an answer", "an error")
    except openai.NotFoundError as e:
        same("missing model", "model 'nope' not found" in str(e), True)


def with_anthropic():
    c = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
    r = c.messages.create(model=CHAT, max_tokens=3, messages=HI)
    same("messages", (r.content[0].text, r.stop_reason, r.usage.output_tokens), (THREE, "max_tokens", 3))
    with c.messages.stream(model=CHAT, max_tokens=3, messages=HI) as s:
        text = "".join(s.text_stream)
        same("messages stream", (text, s.get_final_message().stop_reason), (THREE, "max_tokens"))
    tool = {"name": "get_weather", "description": "w", "input_schema": WEATHER["function"]["parameters"]}
    use = next(b for b in c.messages.create(model=TOOLS, max_tokens=60, messages=HI, tools=[tool]).content if b.type == "tool_use")
    same("tool use", (use.name, use.input), ("get_weather", {"city": "Paris"}))
    with c.messages.stream(model=TOOLS, max_tokens=60, messages=HI, tools=[tool]) as s:
        same("tool use stream", [(b.name, b.input) for b in s.get_final_message().content if b.type == "tool_use"], [("get_weather", {"city": "Paris"})])
    told = [*HI, {"role": "assistant", "content": [use.model_dump(exclude_none=True)]}, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}]}]
    same("tool's result", c.messages.create(model=TOOLS, max_tokens=60, messages=told, tools=[tool]).content[0].text, SUNNY)
    try:
        c.messages.create(model="nope", max_tokens=3, messages=HI)
        same("missing model", "an answer", "an error")
    except anthropic.NotFoundError as e:
        same("missing model", "nope" in str(e), True)


# Nothing turns OpenAI's dialects into Anthropic's: those steps are passed over.
for part in (with_ollama, with_anthropic) if HOSTED == "messages" else (with_ollama, with_openai, with_anthropic):
    part()
print(done)
