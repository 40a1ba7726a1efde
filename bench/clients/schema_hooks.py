"""What no schema says, for schemathesis: which model there is and what it can read, which names
refer to which, and how much to answer. Bodies that are meant to be bad are only kept short."""

import schemathesis

MAX_TOKENS = 4
# What a field of this name becomes where its schema says less than its parser.
PLAIN = {
    "model": "demo",
    "key": None,
    "schema": {"type": "object"},
    "parameters": {"type": "object"},
    "input_schema": {"type": "object"},
    "structured_outputs": {"regex": "[a-c]{1,3}"},
    "cache_control": None,
    "chat_template_kwargs": None,
}


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if not isinstance(body, dict):
        return
    positive = case.meta is None or case.meta.generation.mode.is_positive
    if positive:
        body = mend(body, case.operation.path)
    case.body = shorten(dict(body), case.operation.path)


def shorten(body, path):
    """The same with a short answer, if it says nothing else."""
    def at_most(fields, name, most, absent, allowed=2**32 - 1):
        value = fields.get(name)
        if value is None and absent or type(value) is int and most < value <= allowed:
            fields[name] = most

    if path == "/v1/responses":
        at_most(body, "max_output_tokens", MAX_TOKENS, True)
    if path in ("/v1/chat/completions", "/v1/completions", "/v1/messages"):
        thinks = isinstance(body.get("thinking"), dict)
        if "max_completion_tokens" not in body and not thinks:
            at_most(body, "max_tokens", MAX_TOKENS, path != "/v1/messages")
        at_most(body, "max_completion_tokens", MAX_TOKENS, False)
        at_most(body, "n", 2, False, allowed=16)
    if path in ("/api/chat", "/api/generate") and isinstance(body.get("options", {}), dict | None):
        body["options"] = dict(body.get("options") or {})
        at_most(body["options"], "num_predict", MAX_TOKENS, True, allowed=2**31 - 1)
        if body["options"]["num_predict"] in (-1, -2):
            body["options"]["num_predict"] = MAX_TOKENS
    return body


def mend(body, path):
    """A body that means something to this server."""
    body = plain(body)
    if path == "/api/show":
        body.pop("name", None)
    if isinstance(body.get("tool_choice"), dict):
        body["tool_choice"] = {"type": "auto"} if path.startswith("/v1/messages") else "auto"
    if body.get("keep_alive") is not None:
        body["keep_alive"] = 60  # or else the model is loaded anew each time
    if isinstance(body.get("format"), dict):
        body["format"] = {"type": "object"}
    if body.get("logit_bias") and isinstance(body["logit_bias"], dict):
        body["logit_bias"] = {"1": next(iter(body["logit_bias"].values()))}
    if isinstance(body.get("tokens"), list):
        body["tokens"] = [token(of) for of in body["tokens"]]
    if "prompt" in body and path in ("/v1/completions", "/cache/explain"):
        body["prompt"] = prompt(body["prompt"])
    if isinstance(body.get("options"), dict) and body["options"].get("num_ctx"):
        body["options"]["num_ctx"] = 64
    if path in ("/v1/responses", "/v1/responses/input_tokens"):
        body.pop("store", None)  # or else nothing is there to be shown
        body.pop("previous_response_id", None)
        if isinstance(body["input"], list):
            body["input"] = [item for item in body["input"]
                             if item.get("type") != "function_call_output"] or "Hi!"
    if isinstance(body.get("messages"), list):
        body["messages"] = [{"role": "user", "content": "Hi!"}, *body["messages"],
                            {"role": "user", "content": "Go on."}]
    if path.startswith("/v1/messages"):
        body["messages"] = [spoken(message) for message in body["messages"]]
        budget = (body.get("thinking") or {}).get("budget_tokens")
        if budget is not None:
            body["thinking"]["budget_tokens"] = 1024
            body["max_tokens"] = 1024 + MAX_TOKENS
    return body


def plain(value):
    if isinstance(value, dict):
        return {name: of if of is None else plain(PLAIN.get(name, of))
                for name, of in value.items()}
    return [plain(of) for of in value] if isinstance(value, list) else value


def prompt(of):
    """Of tokens that there are, and at least one."""
    return [prompt(one) for one in of][:16] if isinstance(of, list) else token(of)


def token(of):
    return of % 100 if isinstance(of, (int, float)) else of or "Hi!"


def spoken(message):
    """Without results of tools that were not called."""
    content = message["content"]
    if isinstance(content, list):
        content = [block for block in content if block["type"] != "tool_result"]
        message = {**message, "content": content or "Hi!"}
    return message
