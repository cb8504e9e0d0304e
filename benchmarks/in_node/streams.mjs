// Reads many streams at once, first straight from the source, then through a gateway, in turns. Each chunk says when it was
// written (microseconds since the epoch); prints how long each was on its way, and the difference for the same token of the
// same stream: node streams.mjs DIRECT_URL GATEWAY_URL MODEL STREAMS ROUNDS
import http from "node:http";

const [direct, gateway, model, streams, rounds] = process.argv.slice(2);
const agent = new http.Agent({ keepAlive: true, maxSockets: Infinity });
const now = () => (performance.timeOrigin + performance.now()) * 1000;

function readOne(url, stream) {
  const body = JSON.stringify({ model, stream: true, messages: [{ role: "user", content: `Stream ${stream}: 3 km in m?` }] });
  const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(body) };
  return new Promise((resolve, reject) => {
    const request = http.request(`${url}/chat/completions`, { method: "POST", headers, agent }, (response) => {
      const delays = [];
      let rest = "";
      response.setEncoding("utf8");
      response.on("data", (text) => {
        const arrived = now();
        const lines = (rest + text).split("\n");
        rest = lines.pop();
        for (const line of lines) {
          const stamp = /"content": ?"(\d+) "/.exec(line);
          if (stamp) delays.push((arrived - Number(stamp[1])) / 1000);
        }
      });
      response.on("end", () => (response.statusCode === 200 ? resolve(delays) : reject(new Error(`HTTP ${response.statusCode}`))));
      response.on("error", reject);
    });
    request.on("error", reject);
    request.end(body);
  });
}

const readAll = (url) => Promise.all(Array.from({ length: Number(streams) }, (_, stream) => readOne(url, stream)));
const sorted = (values) => Float64Array.from(values).sort();
const at = (values, share) => values[Math.min(values.length - 1, Math.floor(share * values.length))];
const figures = (values) => ({ p50: at(values, 0.5), p99: at(values, 0.99), max: values[values.length - 1], chunks: values.length });

const straight = [], through = [], added = [];
for (let round = 0; round <= Number(rounds); round++) {
  const a = await readAll(direct);
  const b = await readAll(gateway);
  if (round === 0) continue; // connections are made and code is warm now
  a.forEach((tokens, stream) => tokens.forEach((delay, token) => {
    straight.push(delay);
    through.push(b[stream][token]);
    added.push(b[stream][token] - delay);
  }));
}
console.log(JSON.stringify({ direct: figures(sorted(straight)), gateway: figures(sorted(through)), added: figures(sorted(added)) }));
agent.destroy();
