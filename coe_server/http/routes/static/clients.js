// What to copy into a client: this server's address and a model's name, and a placeholder for the key.

import { byId, element } from "./dom.js";

// A model's name may come from a router's file: quoted, where a program could read more in it than a name.
const isPlain = (model) => /^[\w.:/-]+$/.test(model);
const inShell = (model) => (isPlain(model) ? model : `'${model.replaceAll("'", "'\\''")}'`);
const inYaml = (model) => (isPlain(model) ? model : JSON.stringify(model));

export const CLIENTS = {
  "openai (Python)": {
    goes: "Python, pip install openai",
    text: (address, model) => `from openai import OpenAI

client = OpenAI(base_url="${address}/v1", api_key="YOUR_KEY")
answer = client.chat.completions.create(model=${JSON.stringify(model)}, messages=[{"role": "user", "content": "Hello"}])
print(answer.choices[0].message.content)`,
  },
  "anthropic (Python)": {
    goes: "Python, pip install anthropic",
    text: (address, model) => `from anthropic import Anthropic

client = Anthropic(base_url="${address}", api_key="YOUR_KEY")
message = client.messages.create(model=${JSON.stringify(model)}, max_tokens=512, messages=[{"role": "user", "content": "Hello"}])
print(message.content[0].text)`,
  },
  "Open WebUI": {
    goes: "environment of Open WebUI (or Settings, Connections, OpenAI)",
    text: (address) => `OPENAI_API_BASE_URL=${address}/v1
OPENAI_API_KEY=YOUR_KEY`,
  },
  Continue: {
    goes: "~/.continue/config.yaml",
    text: (address, model) => `name: composition-of-experts
version: 1.0.0
schema: v1
models:
  - name: ${inYaml(model)}
    provider: openai
    model: ${inYaml(model)}
    apiBase: ${address}/v1
    apiKey: YOUR_KEY
    roles: [chat, edit, apply]`,
  },
  "Claude Code": {
    goes: "environment of claude",
    text: (address, model) => `export ANTHROPIC_BASE_URL=${address}
export ANTHROPIC_AUTH_TOKEN=YOUR_KEY
export ANTHROPIC_MODEL=${inShell(model)}
export ANTHROPIC_DEFAULT_HAIKU_MODEL=${inShell(model)}`,
  },
  Codex: {
    goes: "~/.codex/config.toml, and export COE_KEY=YOUR_KEY",
    text: (address, model) => `model = ${JSON.stringify(model)}
model_provider = "coe"

[model_providers.coe]
name = "Composition of Experts"
base_url = "${address}/v1"
env_key = "COE_KEY"
wire_api = "responses"`,
  },
};

// Offers the snippets for these models.
export function showClients(models) {
  if (!models.length) return;
  byId("clients-section").hidden = false;
  byId("client").replaceChildren(...Object.keys(CLIENTS).map((name) => element("option", {}, name)));
  byId("client-model").replaceChildren(...models.map((name) => element("option", {}, name)));
  for (const choice of ["client", "client-model"]) byId(choice).addEventListener("change", fill);
  byId("client-copy").addEventListener("click", copy);
  fill();
}

function fill() {
  const { goes, text } = CLIENTS[byId("client").value];
  byId("client-goes").textContent = goes;
  byId("client-text").textContent = text(location.origin, byId("client-model").value);
  byId("client-copied").textContent = "";
}

async function copy() {
  const text = byId("client-text");
  getSelection().selectAllChildren(text); // to be seen, and for browsers that let no page write over plain HTTP
  const said = await navigator.clipboard?.writeText(text.textContent).then(() => "Copied.", () => null);
  byId("client-copied").textContent = said ?? (document.execCommand("copy") ? "Copied." : "Selected: copy it with Ctrl-C.");
}
