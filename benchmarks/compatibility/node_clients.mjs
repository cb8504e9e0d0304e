// The main calls through the official Node clients; prints one JSON object of plain answers.
// node node_clients.mjs URL MODEL (the packages `openai` and `@anthropic-ai/sdk` must be found from NODE_PATH's folder)
import { createRequire } from 'node:module';

const [url, model] = process.argv.slice(2);
const require = createRequire(process.env.NODE_PACKAGES + '/package.json');
const { OpenAI } = require('openai');
const Anthropic = require('@anthropic-ai/sdk').default;

const messages = [{ role: 'user', content: 'What is the weather?' }];
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey: 'none', maxRetries: 0 });
const gather = async (stream) => { const all = []; for await (const one of await stream) all.push(one); return all; };
const refused = async (call) => { try { await call; return 'answered'; } catch (error) { return { name: error.constructor.name, status: error.status, code: error.code ?? null, type: error.type ?? null }; } };

const greedy = { model, messages, temperature: 0, max_tokens: 12 };
console.log(JSON.stringify({
  'OpenAI for Node: chat': await openai.chat.completions.create(greedy),
  'OpenAI for Node: chat, streamed': await gather(openai.chat.completions.create({ ...greedy, stream: true, stream_options: { include_usage: true } })),
  'OpenAI for Node: responses': await openai.responses.create({ model, input: 'good day', temperature: 0, max_output_tokens: 12 }),
  'OpenAI for Node: a refusal': await refused(openai.chat.completions.create({ ...greedy, temperature: -1 })),
  'Anthropic for Node: messages': await anthropic.messages.create(greedy),
  'Anthropic for Node: messages, streamed': await gather(anthropic.messages.create({ ...greedy, stream: true })),
  'Anthropic for Node: a refusal': await refused(anthropic.messages.create({ ...greedy, temperature: -1 })),
}));
