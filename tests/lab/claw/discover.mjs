// OpenClaw's own discovery of an Ollama on 127.0.0.1:11434, without the rest of its start: what it believes of each model.
// Argument: the folder it is installed in. Prints {model: {tools, thinking, context}} and the milliseconds it took.
const { buildOllamaProvider } = await import(`${process.argv[2]}/node_modules/openclaw/dist/extensions/ollama/api.js`);
const began = performance.now();
const { models } = await buildOllamaProvider();
const ms = Math.round(performance.now() - began);
const told = models.map((m) => [m.id, { tools: m.compat.supportsTools, thinking: m.reasoning, context: m.contextWindow }]);
console.log(JSON.stringify({ ms, models: Object.fromEntries(told) }));
process.exit(0);
