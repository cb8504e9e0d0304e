"""What servers' errors stand for, in the words that real servers use."""

import json

import pytest

from coe_server.upstream.complaint import Cause
from coe_server.upstream.verdict import judge_status


def openai(message, type="invalid_request_error", code=None, param=None):
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def cause(status, body):
    return judge_status(status, body if isinstance(body, bytes) else json.dumps(body).encode()).cause


@pytest.mark.parametrize("status", [100, 101, 301, 302, 307, 308, 401, 402, 403, 407, 408, 410, 421, 423, 424, 425])
@pytest.mark.parametrize("body", [b"", b"no", b"<html>no</html>", openai("no"), {"detail": "no"}])
def test_some_statuses_are_the_experts_whatever_they_say(status, body):
    assert judge_status(status, json.dumps(body).encode() if isinstance(body, dict) else body).is_failure


@pytest.mark.parametrize("status", [429, 451, *range(500, 600, 7), 529, 599])
def test_limits_and_every_5xx_are_the_experts(status):
    assert judge_status(status, b"").is_failure
    assert judge_status(status, json.dumps(openai("temperature must be positive")).encode()).is_failure


ACCOUNT = {
    "credit": (
        400,
        {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API."},
        },
    ),
    "a hard limit": (400, openai("Billing hard limit has been reached", code="billing_hard_limit_reached")),
    "a key": (
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "API key not valid. Please pass a valid API key.",
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
    ),
    "an organisation": (
        400,
        openai("Organization has been restricted. Please reach out to support.", code="organization_restricted"),
    ),
    "arrears": (
        400,
        {"code": "Arrearage", "message": "Access denied, please make sure your account is in good standing."},
    ),
    "not in English": (400, openai("账户余额不足")),
    "a plain text": (422, b"payment required: add a card"),
    "as a conflict": (409, openai("Your account is suspended")),
    "usage limits": (400, openai("You have reached your specified API usage limits.")),
    "a budget": (400, openai("Budget has been exceeded! Current cost: 12.3, Max budget: 10.0", "budget_exceeded")),
    "a token of the API": (498, {"message": "invalid api token"}),
    "inside another error": (
        400,
        openai('BadRequestError: AnthropicException - {"type": "error", "message": "Your credit balance is too low"}'),
    ),
    "inside a client's words": (
        400,
        openai("Error code: 400 - {'error': {'message': 'Your credit balance is too low'}}"),
    ),
    "one that ends": (422, {"detail": [{"msg": "Subscription expired", "input": "x"}]}),
}


@pytest.mark.parametrize(("status", "body"), ACCOUNT.values(), ids=ACCOUNT)
def test_what_speaks_of_the_account_is_the_experts(status, body):
    assert cause(status, body) is Cause.ACCOUNT


CONTEXT = {
    "OpenAI": (400, openai("This model's maximum context length is 8192 tokens.", code="context_length_exceeded")),
    "vLLM": (
        400,
        openai(
            "This model's maximum context length is 2048 tokens. However, you requested 3000 tokens",
            "BadRequestError",
            400,
        ),
    ),
    "vLLM, later": (
        400,
        openai(
            "The decoder prompt (length 70000) is longer than the maximum model length of 4096.", "BadRequestError", 400
        ),
    ),
    "Anthropic": (
        400,
        {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"},
        },
    ),
    "Google": (400, openai("The input token count (1100000) exceeds the maximum number of tokens allowed (1048576).")),
    "llama.cpp": (
        400,
        openai("the request exceeds the available context size, try increasing it", "exceed_context_size_error", 400),
    ),
    "TGI": (
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096.",
            "error_type": "validation",
        },
    ),
    "Mistral": (400, openai("Prompt contains 40000 tokens, too large for model with 32768 maximum context length")),
    "SGLang": (
        400,
        openai("The input (70000 tokens) is longer than the model's context length (32768 tokens).", code=400),
    ),
    "Bedrock": (400, {"message": "Input is too long for requested model."}),
    "Groq": (
        413,
        openai("Request too large for model `x` on tokens per minute (TPM)", "tokens", "rate_limit_exceeded"),
    ),
    "nginx": (413, b"<html><head><title>413 Request Entity Too Large</title></head></html>"),
    "Groq, an answer's length": (
        400,
        openai("max_tokens must be less than or equal to 8192, it is less than the `context_window` for this model"),
    ),
    "DeepSeek": (400, openai("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]")),
    "LiteLLM": (400, openai("litellm.ContextWindowExceededError: litellm.BadRequestError: no")),
    "an answer's length": (
        400,
        openai("max_tokens is too large: 100000. This model supports at most 4096 completion tokens"),
    ),
}


@pytest.mark.parametrize(("status", "body"), CONTEXT.values(), ids=CONTEXT)
def test_a_prompt_that_is_too_long_may_fit_elsewhere(status, body):
    verdict = judge_status(status, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert (verdict.cause, verdict.is_failure, verdict.backs_off) == (Cause.CONTEXT, True, "never")


MODEL = {
    "OpenAI": (404, openai("The model `x` does not exist or you do not have access to it.", code="model_not_found")),
    "by its words": (404, openai("The model `run-x` does not exist.", "NotFoundError", 404)),
    "Ollama": (404, {"error": "model 'x' not found"}),
    "Azure": (404, openai("The API deployment for this resource does not exist.", None, "DeploymentNotFound")),
    "retired": (410, openai("gone")),
    "Groq, retired": (
        400,
        openai("The model `x` has been decommissioned and is no longer supported.", code="model_decommissioned"),
    ),
    "DeepSeek": (400, openai("Model Not Exist")),
    "OpenRouter": (400, openai("x/y is not a valid model ID", None, 400)),
    "Anthropic": (404, {"type": "error", "error": {"type": "not_found_error", "message": "model: claude-9"}}),
    "Google": (404, [{"error": {"code": 404, "message": "models/x is not found for API version v1main"}}]),
    "Bedrock": (400, {"message": "The provided model identifier is invalid."}),
    "Bedrock, retired": (404, {"message": "This model version has reached the end of its life."}),
    "an image in its name": (404, openai("The model `gpt-image-1` does not exist")),
    "not served": (400, openai("model 'x' is not supported")),
}


@pytest.mark.parametrize(("status", "body"), MODEL.values(), ids=MODEL)
def test_a_model_that_is_gone_is_the_experts(status, body):
    verdict = judge_status(status, json.dumps(body).encode())
    assert (verdict.cause, verdict.is_failure, verdict.backs_off) == (Cause.MODEL, True, "in a row")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"404 page not found",
        b"<html>Not Found</html>",
        b"<html><h2>404 - File or directory not found.</h2></html>",
        b"File not found.",
        {"message": "Route POST /run-service/x not found"},
        {"detail": "Not Found"},
        openai("Invalid URL (POST /v1/x)"),
        openai("Resource not found", code="404"),
    ],
    ids=str,
)
def test_a_path_that_is_unknown_is_the_experts_and_costs_no_backoff(body):
    verdict = judge_status(404, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert (verdict.cause, verdict.backs_off) == (Cause.PATH, "never")


@pytest.mark.parametrize(
    "body",
    [
        openai(
            "Previous response with id 'resp_68f' not found.",
            code="previous_response_not_found",
            param="previous_response_id",
        ),
        openai("Response with id 'resp_68f' not found.", param="response_id", code=404),
        openai("No such File object: file-abc123"),
        openai("Conversation with id 'conv_1234' not found."),
        openai("not found", param="conversation"),
    ],
    ids=str,
)
def test_an_id_that_the_caller_gave_is_the_callers(body):
    assert cause(404, body) is Cause.CALLER


@pytest.mark.parametrize(
    "body",
    [
        openai("Unsupported parameter: 'max_tokens'", code="unsupported_parameter", param="max_tokens"),
        openai("Unrecognized request argument supplied: top_k"),
        {
            "detail": [
                {"type": "extra_forbidden", "loc": ["body", "x"], "msg": "Extra inputs are not permitted", "input": 1}
            ]
        },
        openai("registry/x does not support tools", "api_error"),
        openai("The chatCompletion operation does not work with the specified model, x.", code="OperationNotSupported"),
        openai("Model x is enabled only for api versions 2024-12-01-preview and later"),
        openai("unknown variant `image_url`, expected `text` at line 1 column 234"),
        openai("At most 0 image(s) may be provided in one prompt."),
        {"message": "Invocation of model ID x with on-demand throughput isn\u2019t supported."},
        openai(
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            "BadRequestError",
            400,
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("status", [400, 422])
def test_a_parameter_that_an_expert_does_not_know_may_be_known_elsewhere(status, body):
    verdict = judge_status(status, json.dumps(body).encode())
    assert (verdict.cause, verdict.is_failure, verdict.backs_off) == (Cause.UNSUPPORTED, True, "never")


CALLERS = {
    "a range": (400, openai("temperature must be between 0 and 2", param="temperature")),
    "a field": (
        422,
        {"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required", "input": {}}]},
    ),
    "a policy": (400, openai("Your request was rejected by our content filter", code="content_policy_violation")),
    "a text that is repeated": (
        422,
        {
            "detail": [
                {
                    "type": "string_type",
                    "msg": "Input should be a valid string",
                    "input": "my credit balance, my api key",
                }
            ]
        },
    ),
    "what a validator repeats": (
        400,
        openai("{'type': 'string_type', 'msg': 'Input should be a valid string', 'input': {'text': 'my api key'}}"),
    ),
    "what a validator repeats in its own words": (
        400,
        openai("Input should be a valid list [type=list_type, input_value='an unpaid invoice', input_type=str]"),
    ),
    "the name of a tool": (400, openai("Invalid schema for function 'create_invoice': array schema missing items.")),
    "a name like an id": (400, openai("Invalid schema for function proj_settings: array schema missing items.")),
    "a value": (400, openai("Invalid value: 'my api key'. The values are: 'system', 'user'.", code="invalid_value")),
    "an address": (400, openai("Expected a valid URL, got 'https://x.example/?api_key=1'")),
    "an answer that failed": (
        400,
        {"error": {"message": "Failed to call a function.", "failed_generation": "pay the invoice, add credit"}},
    ),
    "the caller's own user_id": (400, openai("metadata.user_id: String should have at most 256 characters")),
    "a length that is too small": (400, openai("max_tokens must be greater than 0")),
    "a budget of thought": (400, openai("thinking.budget_tokens: Input should be greater than or equal to 1024")),
    "a limit of its own": (400, openai("Too many images: the hard limit is 10")),
    "an old parameter": (400, openai("For this model, the parameter functions is deprecated")),
    "a file": (400, openai("The model read no words. File not found")),
    "a method": (405, openai("method not allowed")),
    "a form": (415, b"unsupported media type"),
    "a conflict": (409, openai("the response is still in progress")),
    "nothing": (400, b""),
    "a text": (400, b"bad request"),
}


@pytest.mark.parametrize(("status", "body"), CALLERS.values(), ids=CALLERS)
def test_other_4xx_are_the_callers(status, body):
    verdict = judge_status(status, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert (verdict.cause, verdict.is_failure) == (Cause.CALLER, False)


def test_what_keeps_requests_away_and_when():
    def backs_off(status):
        return judge_status(status, b"").backs_off

    assert {s for s in range(400, 600) if backs_off(s) == "at once"} == {401, 402, 407, 429, 503, 529}
    assert {s for s in (403, 408, 410, 421, 423, 424, 425, 451, 500, 502, 504) if backs_off(s) == "in a row"} == {
        *(403, 408, 410, 421, 423, 424, 425, 451, 500, 502, 504)
    }


@pytest.mark.parametrize("body", [b"\xff\xfe", b"[" * 100_000, b"null", b"3", b'{"error": null}', b'{"error": []}'])
@pytest.mark.parametrize("status", [400, 404, 500])
def test_any_bytes_are_read(status, body):
    assert judge_status(status, body).status == status
