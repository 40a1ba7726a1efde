// Vercel's AI SDK with its provider for servers that speak OpenAI's API. The provider holds every
// chunk against a schema of its own; one that does not fit is a part of type `error`.

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { ADDRESS, CITY, CITY_QUESTION, KEY, MODEL, QUESTION, REPORT, WEATHER, WORD, fails }
  from "./server.mjs";

const SERVER = { name: "offshoot", baseURL: `${ADDRESS}/v1`, includeUsage: true };
const connect = (apiKey) => createOpenAICompatible({ ...SERVER, apiKey });
const PROVIDER = connect(KEY);
const city = z.string().describe("The city");
const WITHOUT_RESULT =
  tool({ description: WEATHER.description, inputSchema: z.object({ city }) });

function fieldsOf(fields) {
  const base = { model: PROVIDER(MODEL), prompt: QUESTION, temperature: 0, maxRetries: 0 };
  return { ...base, maxOutputTokens: 48, ...fields };
}

const generate = (fields) => generateText(fieldsOf(fields));
const cityFields = (weather) => ({ prompt: CITY_QUESTION, tools: { [WEATHER.name]: weather } });

async function parts(fields) {
  const found = [];
  const errors = [];
  const onError = ({ error }) => errors.push(error);
  const { fullStream } = streamText(fieldsOf({ ...fields, onError }));
  for await (const part of fullStream) found.push(part);
  assert.deepEqual(errors, []);
  assert(found.every((part) => part.type !== "error"));
  return found;
}

export async function check_chat() {
  const { text, finishReason, usage } = await generate();
  assert(text.includes(WORD), text);
  assert(["stop", "length"].includes(finishReason));
  assert.equal(usage.totalTokens, usage.inputTokens + usage.outputTokens);
}

export async function check_stream() {
  let text = "";
  for await (const delta of streamText(fieldsOf()).textStream) text += delta;
  assert.equal(text, (await generate()).text);
}

export async function check_strict_chunks() {
  const found = await parts();
  const kinds = found.map((part) => part.type);
  assert.equal(kinds.filter((kind) => kind === "text-start").length, 1);
  assert.equal(kinds.filter((kind) => kind === "text-end").length, 1);
  assert(kinds.filter((kind) => kind === "text-delta").length > 1, "it did not stream");
  const { totalUsage, finishReason } = found.find((part) => part.type === "finish");
  assert(["stop", "length"].includes(finishReason));
  assert(totalUsage.outputTokens > 0 && totalUsage.inputTokens > 0);
}

export async function check_cached_tokens() {
  await generate();
  const { usage } = await generate();
  assert(usage.inputTokenDetails.cacheReadTokens > 0);
}

export async function check_tools() {
  const { toolCalls, finishReason } =
    await generate({ ...cityFields(WITHOUT_RESULT), toolChoice: "auto" });
  assert.equal(finishReason, "tool-calls");
  assert.deepEqual(toolCalls.map((call) => [call.toolName, call.input]),
    [[WEATHER.name, { city: CITY }]]);
}

export async function check_tools_in_a_stream() {
  const found = await parts(cityFields(WITHOUT_RESULT));
  const calls = found.filter((part) => part.type === "tool-call");
  assert.deepEqual(calls.map((call) => call.input), [{ city: CITY }]);
}

// The client calls the function, sends its result back and reads the answer.
export async function check_tool_loop() {
  const weather = tool({ ...WITHOUT_RESULT, execute: async () => REPORT });
  const { text, steps } = await generate({ ...cityFields(weather), stopWhen: stepCountIs(3) });
  assert.equal(steps.length, 2);
  assert(text.includes(REPORT.condition) && text.includes(REPORT.temperature), text);
}

export async function check_errors() {
  const status = async (fields) => (await fails(APICallError, () => generate(fields))).statusCode;
  assert.equal(await status({ model: PROVIDER("nope") }), 404);
  assert.equal(await status({ model: connect("nobody")(MODEL) }), 401);
  const bad = await fails(APICallError, () => generate({ temperature: -1 }));
  assert.equal(bad.statusCode, 400);
  assert(bad.message.includes("temperature"), bad.message);
  assert(!bad.isRetryable);
}
