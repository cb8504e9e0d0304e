// What the page asks the server for. Everything comes from where the page came from.

export class Refused extends Error {}

export async function ask(path, options = {}) {
  const answer = await fetch(path, ours(options));
  if (!answer.ok) throw new Refused(await complaint(answer));
  return answer.status === 204 ? null : answer.json();
}

// What the browser lets this page alone send, so that the password it remembers opens what is any client's, too.
const ours = (options) => ({ ...options, headers: { ...options.headers, "x-coe-page": "1" } });

async function complaint(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `${answer.url} answers ${answer.status}`;
  }
}

export const asJson = (method, body) => ({
  method,
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
});

// Calls `seen(event)` for every event of the server, `open(is)` when the line comes or goes.
export function follow(seen, open) {
  const source = new EventSource("/admin/events");
  source.onopen = () => open(true);
  source.onerror = () => open(false);
  for (const kind of ["move", "switch", "decision", "failure"]) {
    source.addEventListener(kind, (event) => seen(JSON.parse(event.data)));
  }
}

// Streams one answer: `begun(headers)` first, then `word(text)` as they come. Where the head left early, before that
// `waiting({expert, state, eta})` now and then, and `answering({expert, reason, wait_ms})` once.
export async function stream(body, { begun, ...hear }) {
  const answer = await fetch("/v1/chat/completions", ours(asJson("POST", { ...body, stream: true })));
  begun(answer.headers);
  if (!answer.ok) throw new Refused(await complaint(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) read(line.trim(), hear);
  }
}

function read(line, hear) {
  const [, comment, fields] = line.match(/^: coe (waiting|answering) (.*)$/) ?? [];
  if (comment) hear[comment](Object.fromEntries(fields.split(" ").map((field) => field.split("="))));
  if (!line.startsWith("data:")) return;
  const data = line.slice(5).trim();
  if (data === "[DONE]") return;
  const event = JSON.parse(data);
  if (event.error) throw new Refused(event.error.message);
  const text = event.choices?.[0]?.delta?.content;
  if (text) hear.word(text);
}
