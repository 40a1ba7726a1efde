// OpenAI's own client for JavaScript.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { ADDRESS, CITY, CITY_QUESTION, KEY, MODEL, QUESTION, REPORT, WEATHER, WORD, fails }
  from "./server.mjs";

const connect = (apiKey) => new OpenAI({ baseURL: `${ADDRESS}/v1`, apiKey, maxRetries: 0 });
const CLIENT = connect(KEY);
const TOOL = { type: "function", function: WEATHER };
const USAGE = { stream: true, stream_options: { include_usage: true } };

function fieldsOf(question, fields) {
  const messages = [{ role: "user", content: question }];
  return { model: MODEL, messages, temperature: 0, max_tokens: 48, ...fields };
}

const chat = (fields) => CLIENT.chat.completions.create(fieldsOf(QUESTION, fields));
const askCity = (fields) =>
  CLIENT.chat.completions.create(fieldsOf(CITY_QUESTION, { tools: [TOOL], ...fields }));
const textOf = (answer) => answer.choices[0].message.content;

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

export async function check_models() {
  const ids = [];
  for await (const model of CLIENT.models.list()) ids.push(model.id);
  assert(ids.includes(MODEL), ids.join());
}

export async function check_chat() {
  const answer = await chat();
  assert(textOf(answer).includes(WORD), textOf(answer));
  assert(["stop", "length"].includes(answer.choices[0].finish_reason));
  const { total_tokens, prompt_tokens, completion_tokens } = answer.usage;
  assert.equal(total_tokens, prompt_tokens + completion_tokens);
}

export async function check_stream() {
  const chunks = await collect(await chat(USAGE));
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  assert.equal(text, textOf(await chat()));
}

// The client itself checks nothing of a chunk.
export async function check_strict_chunks() {
  for (const stream of [chat(USAGE), askCity(USAGE)]) {
    const chunks = await collect(await stream);
    const last = chunks.pop();
    for (const chunk of [...chunks, last]) {
      const { id, object, created, model } = chunk;
      assert.deepEqual({ id, object, model }, { id: last.id, object, model: MODEL });
      assert.equal(object, "chat.completion.chunk");
      assert(Number.isInteger(created));
    }
    for (const chunk of chunks) {
      assert.deepEqual(chunk.choices.map((choice) => choice.index), [0]);
      assert.equal(typeof chunk.choices[0].delta, "object");
      assert.equal(chunk.usage, null);
    }
    const reasons = chunks.map((chunk) => chunk.choices[0].finish_reason);
    assert.equal(typeof reasons.pop(), "string");
    assert(reasons.every((reason) => reason === null), reasons.join());
    const roles = chunks.map((chunk) => chunk.choices[0].delta.role);
    assert.equal(roles.shift(), "assistant");
    assert(roles.every((role) => role === undefined), roles.join());
    assert.deepEqual(last.choices, []);
    assert(last.usage.completion_tokens > 0);
  }
}

export async function check_stream_helper() {
  const stream = CLIENT.chat.completions.stream(fieldsOf(QUESTION, {}));
  let text = "";
  stream.on("content", (delta) => { text += delta; });
  assert.equal(textOf(await stream.finalChatCompletion()), textOf(await chat()));
  assert.equal(text, textOf(await chat()));
}

export async function check_leaving() {
  const stream = await chat({ stream: true, max_tokens: 400 });
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  assert(stream.controller.signal.aborted);
  assert(textOf(await chat()).includes(WORD));
}

export async function check_cached_tokens() {
  const first = await chat();
  const second = await chat();
  assert(second.usage.prompt_tokens_details.cached_tokens > 0);
  assert.equal(textOf(first), textOf(second));
}

export async function check_tools() {
  const choice = (await askCity({ tool_choice: "auto" })).choices[0];
  assert.equal(choice.finish_reason, "tool_calls");
  const [call] = choice.message.tool_calls;
  assert.equal(call.function.name, WEATHER.name);
  assert.deepEqual(JSON.parse(call.function.arguments), { city: CITY });
}

export async function check_tools_in_a_stream() {
  const fields = fieldsOf(CITY_QUESTION, { tools: [TOOL] });
  const final = await CLIENT.chat.completions.stream(fields).finalChatCompletion();
  const [call] = final.choices[0].message.tool_calls;
  assert.deepEqual(JSON.parse(call.function.arguments), { city: CITY });
  assert.equal(final.choices[0].finish_reason, "tool_calls");
}

// The client calls the function, sends its result back and reads the answer.
export async function check_tool_runner() {
  const asked = [];
  const run = ({ city }) => { asked.push(city); return REPORT; };
  const tool = { type: "function", function: { ...WEATHER, parse: JSON.parse, function: run } };
  const runner = CLIENT.chat.completions.runTools(fieldsOf(CITY_QUESTION, { tools: [tool] }));
  const answer = await runner.finalContent();
  assert.deepEqual(asked, [CITY]);
  assert(answer.includes(REPORT.condition) && answer.includes(REPORT.temperature), answer);
}

export async function check_errors() {
  const missing = await fails(OpenAI.NotFoundError, () => chat({ model: "nope" }));
  assert.equal(missing.param, "model");
  const bad = await fails(OpenAI.BadRequestError, () => chat({ temperature: -1 }));
  assert.equal(bad.param, "temperature");
  await fails(OpenAI.BadRequestError, () => chat({ temperature: -1, stream: true }));
  await fails(OpenAI.AuthenticationError, () => connect("nobody").models.list());
}
