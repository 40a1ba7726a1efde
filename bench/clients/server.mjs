// Where the server is, and what all clients ask it: server.py in JavaScript.

import assert from "node:assert/strict";

export const ADDRESS = process.env.CLIENTS_ADDRESS;
export const KEY = process.env.CLIENTS_KEY;
export const MODEL = "demo";
// The bundled model has an answer to this, and calls a tool for that.
export const QUESTION = "What is Offshoot?";
export const WORD = "Offshoot";
export const CITY = "Paris";
export const CITY_QUESTION = `What is the weather in ${CITY}?`;
export const WEATHER = {
  name: "get_weather",
  description: "Get the weather in a city",
  parameters: {
    type: "object",
    properties: { city: { type: "string", description: "The city" } },
    required: ["city"],
  },
};
export const REPORT = { temperature: 21, condition: "sunny" };

/** The error of this kind that asking rejects with. */
export async function fails(kind, ask) {
  try {
    await ask();
  } catch (error) {
    assert(error instanceof kind, error);
    return error;
  }
  assert.fail(`no ${kind.name} came`);
}
