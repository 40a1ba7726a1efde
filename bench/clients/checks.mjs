// Runs all checks of the npm clients against the server that CLIENTS_ADDRESS and CLIENTS_KEY name
// and prints a JSON object for each: checks.py in JavaScript. `run.py` calls this.

import { readFileSync } from "node:fs";
import * as ai from "./with_ai.mjs";
import * as openai from "./with_openai.mjs";

const CLIENTS = { ai, openai };
const wanted = process.argv.slice(2);

for (const [name, module] of Object.entries(CLIENTS)) {
  const manifest = readFileSync(`node_modules/${name}/package.json`, "utf8");
  const client = `npm/${name}`;
  for (const [attribute, check] of Object.entries(module)) {
    if (!attribute.startsWith("check_")) continue;
    const title = attribute.slice("check_".length);
    if (wanted.length && !wanted.some((part) => `${client}.${title}`.includes(part))) continue;
    const start = performance.now();
    let error = null;
    try {
      await check();
    } catch (thrown) {
      error = thrown?.stack ?? String(thrown);
    }
    const seconds = (performance.now() - start) / 1000;
    const version = JSON.parse(manifest).version;
    console.log(JSON.stringify({ client, version, check: title, seconds, error }));
  }
}
