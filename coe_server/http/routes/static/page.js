// Starts the page and joins its parts. Knows no part's inside.

import { Activity } from "./activity.js";
import { showClients } from "./clients.js";
import { byId } from "./dom.js";
import { OpenExpert } from "./expert.js";
import { Nodes } from "./nodes.js";
import { Playground } from "./playground.js";
import { showLearning } from "./learning.js";
import { Routes } from "./routes.js";
import { showQuality } from "./quality.js";
import { ask, follow } from "./server.js";
import { Shelves } from "./shelves.js";

const LOOK_EVERY = 1000; // milliseconds; leases and queues change without an event
const opened = new OpenExpert(refresh);
const shelves = new Shelves(byId("shelves"), (expert) => opened.open(expert));
const nodes = new Nodes(byId("nodes-section"), byId("nodes"));
const routes = new Routes();
const activity = new Activity(byId("decisions"), byId("moves"), (decision) => routes.chooser(decision));
const playground = new Playground(refresh);
const NEWS_SECONDS = 4; // a look may have shown what an event tells a moment later
let knownAt = 0; // the server's time of what is shown
let openedAt = 0; // and of what was shown first
let looking = null; // a look that is under way

function refresh() {
  looking ??= look().finally(() => (looking = null));
  return looking;
}

async function look() {
  try {
    const [experts, overview] = await Promise.all([ask("/admin/experts"), ask("/admin/overview")]);
    shelves.show(experts, overview.tiers);
    opened.show(experts);
    nodes.show(overview.nodes ?? [], experts);
    knownAt = overview.now;
    playground.remembers = overview.decisions_kept;
    showRouter(overview);
    trouble(null);
  } catch (error) {
    trouble(error.message);
  }
}

function showRouter(overview) {
  const drift = overview.left_band?.length
    ? ` · traffic has drifted: ${overview.left_band.join(", ").replaceAll("_", " ")}`
    : "";
  const router = overview.router === "none" ? "no router yet: experts answer by their names" : `router ${overview.router}`;
  byId("router").textContent = router + saved(overview.costs) + drift;
  byId("router").classList.toggle("drifted", Boolean(drift));
}

/** What routed answers cost since the start, against the best single expert. */
function saved(costs) {
  const one = costs?.at(-1); // of the router that decides now
  if (!one?.instead) return "";
  const less = Math.round(100 * (1 - one.spent / one.instead));
  const what = one.unit === "active_params_b" ? "active parameters" : "money";
  return ` · answers took ${Math.abs(less)} % ${less < 0 ? "more" : "less"} ${what} than always asking ${one.best_single}`;
}

function trouble(sentence) {
  byId("trouble").hidden = sentence === null;
  byId("trouble").textContent = sentence ?? "";
}

function seen(event) {
  if (event.kind === "move" && event.time > knownAt) shelves.move(event);
  if (event.time > Math.max(openedAt, knownAt - NEWS_SECONDS)) shelves.tell(event); // the past is listed, not played again
  activity.add(event);
  refresh();
}

function connected(is) {
  byId("status").textContent = is ? "live" : "not connected, trying again";
  byId("pulse").classList.toggle("on", is);
}

await refresh();
openedAt = knownAt;
await routes.start();
const past = await ask("/admin/decisions").catch(() => []);
activity.start(past);
await playground.start();
showClients(playground.models);
follow(seen, connected);
setInterval(() => document.hidden || refresh(), LOOK_EVERY);
showQuality(await ask("/admin/quality").catch(() => null));
showLearning(await ask("/admin/learning").catch(() => null));
document.documentElement.dataset.ready = "yes";
