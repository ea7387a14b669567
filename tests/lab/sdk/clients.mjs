// The real npm clients against 127.0.0.1:11434 of the node this runs on. Prints how many answers were as they must be.
// Arguments: the chat model, a tools model, an embedding model; `direct` speaks to Ollama itself, to prove the expectations.
// `chat` or `messages` say that the models are a provider's which speaks nothing else: what only an engine has is left out then.
import { createRequire } from "node:module";
import assert from "node:assert/strict";

const require = createRequire(process.env.LAB_SDK_NPM + "/package.json");
const { Ollama } = require("ollama");
const OpenAI = require("openai");

const [CHAT, TOOLS, EMBED] = process.argv.slice(2, 5);
const URL = `http://127.0.0.1:${process.argv.includes("direct") ? 11435 : 11434}`;
const THREE = " one two three";
const HI = [{ role: "user", content: "hi" }];
const WEATHER = { type: "function", function: { name: "get_weather", description: "w", parameters: { type: "object", properties: { city: { type: "string" } } } } };
const SUNNY = "It is sunny in Paris.";
const HOSTED = ["chat", "messages"].find((w) => process.argv.includes(w));
const LONG = HOSTED ? `${CHAT.split("/")[0]}/count` : CHAT; // longer than what may lie in one piece of a fast provider
let done = 0;
const same = (what, got, want) => { assert.deepEqual(got, want, what); done += 1; };
const gather = async (stream, text) => { let all = ""; let last; for await (const p of stream) { all += text(p); last = p; } return [all, last]; };

async function withOllama() {
  const c = new Ollama({ host: URL });
  const options = { num_predict: 3 };
  if (!HOSTED) same("list", (await c.list()).models.some((m) => m.name === `${CHAT}:latest`), true);
  if (!HOSTED) same("show", (await c.show({ model: TOOLS })).capabilities, ["completion", "tools"]);
  same("generate", (await c.generate({ model: CHAT, prompt: "hi", options })).response, THREE);
  same("generate stream", (await gather(await c.generate({ model: CHAT, prompt: "hi", options, stream: true }), (p) => p.response))[0], THREE);
  same("chat", (await c.chat({ model: CHAT, messages: HI, options })).message.content, THREE);
  const [text, last] = await gather(await c.chat({ model: CHAT, messages: HI, options, stream: true }), (p) => p.message.content);
  same("chat stream", [text, last.done_reason, last.eval_count], [THREE, "length", 3]);
  const asks = (await c.chat({ model: TOOLS, messages: HI, tools: [WEATHER] })).message;
  const call = asks.tool_calls[0].function;
  same("tools", [call.name, call.arguments], ["get_weather", { city: "Paris" }]);
  const result = { role: "tool", tool_name: "get_weather", content: "sunny" };
  same("tool's result", (await c.chat({ model: TOOLS, messages: [...HI, asks, result], tools: [WEATHER] })).message.content, SUNNY);
  if (!HOSTED) same("embed", (await c.embed({ model: EMBED, input: ["hello", "hallo"] })).embeddings.length, 2);
  await assert.rejects(c.chat({ model: "nope", messages: HI }), /model 'nope' not found/); done += 1;
  const stream = await c.generate({ model: LONG, prompt: "hi", options: { num_predict: 20000 }, stream: true });
  await assert.rejects(gather(stream, () => { stream.abort(); return ""; }), /abort/i); done += 1;
}

async function withOpenAI() {
  const c = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "none", maxRetries: 0 });
  if (!HOSTED) same("models", (await c.models.list()).data.some((m) => m.id === CHAT || m.id === `${CHAT}:latest`), true);
  const r = await c.chat.completions.create({ model: CHAT, messages: HI, max_tokens: 3 });
  same("chat", [r.choices[0].message.content, r.model, r.usage.completion_tokens], [THREE, CHAT, 3]);
  const [text] = await gather(await c.chat.completions.create({ model: CHAT, messages: HI, max_tokens: 3, stream: true }), (p) => p.choices[0]?.delta.content ?? "");
  same("chat stream", text, THREE);
  const asks = (await c.chat.completions.create({ model: TOOLS, messages: HI, tools: [WEATHER] })).choices[0].message;
  const call = asks.tool_calls[0].function;
  same("tools", [call.name, JSON.parse(call.arguments)], ["get_weather", { city: "Paris" }]);
  const result = { role: "tool", tool_call_id: asks.tool_calls[0].id, content: "sunny" };
  same("tool's result", (await c.chat.completions.create({ model: TOOLS, messages: [...HI, asks, result], tools: [WEATHER] })).choices[0].message.content, SUNNY);
  if (!HOSTED) same("embedding", (await c.embeddings.create({ model: EMBED, input: "hello" })).data[0].embedding.length > 0, true);
  same("response", (await c.responses.create({ model: CHAT, input: "hi", max_output_tokens: 3 })).output_text, THREE);
  const [, last] = await gather(await c.responses.create({ model: CHAT, input: "hi", max_output_tokens: 3, stream: true }), () => "");
  same("response stream", last.type, HOSTED ? "response.incomplete" : "response.completed");
  await assert.rejects(c.chat.completions.create({ model: "nope", messages: HI }), (e) => e.status === 404 && /not found/.test(e.message)); done += 1;
}

await withOllama();
if (HOSTED !== "messages") await withOpenAI();
console.log(done);
