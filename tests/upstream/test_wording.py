"""What errors stand for that real servers put in words, codes and statuses of their own."""

import json

import pytest

from coe_server.upstream.complaint import Cause
from coe_server.upstream.verdict import judge_status
from coe_server.upstream.wording import folded


def said(message, code=None, **more):
    return {"error": {"message": message, "type": "invalid_request_error", "code": code, **more}}


def page(title):
    return f"<html><head><title>{title}</title></head></html>".encode()


def verdict(status, body):
    return judge_status(status, body if isinstance(body, bytes) else json.dumps(body).encode())


PLACE = "projects/my-own/locations/us-central1/publishers/google/models/x"
ACCOUNT = {
    "a country": (400, [said("User location is not supported for the API use.")]),
    "a project": (400, said(f"Project `1234567` is not allowed to use Publisher Model `{PLACE}`")),
    "a grant": (400, {"error": "invalid_grant", "error_description": "Token has been expired or revoked."}),
    "a form to fill in": (404, {"message": "Model use case details have not been submitted for this account."}),
    "a security token": (400, {"message": "The security token included in the request is expired"}),
    "a signature": (400, {"message": "Signature expired: 20260101T000000Z is now earlier than 20260101T001000Z"}),
    "a resource": (400, {"message": "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/a is in a wrong state"}),
    "terms": (400, said("The model `x` requires terms acceptance. Please have the org admin accept the terms")),
    "a function": (404, {"status": 404, "detail": "Function '9b96': Not found for account 'AbCdEfGh12'"}),
    "what is not bought": (400, {"code": "AccessDenied.Unpurchased", "message": "Access to model denied."}),
    "a code in parts": (400, said("no", "Model.AccessDenied")),
    "a budget": (400, said("ExceededBudget: User=x over budget. Spend=1.2, Budget=1.0")),
    "a balance": (400, {"code": 400, "reason": "NOT_ENOUGH_BALANCE", "message": "no"}),
    "what is not opened": (404, said("Your account 2100123456 has not activated the model x.", "ModelNotOpen")),
    "no right": (400, said("您无权访问 x")),
    "a token": (400, said("Authorization Token非法")),
    "a path with an account": (400, {"errors": [{"message": f"Could not route to /accounts/{'0a' * 16}/ai/v1"}]}),
}


@pytest.mark.parametrize(("status", "body"), ACCOUNT.values(), ids=ACCOUNT)
def test_what_tells_of_the_operators_account_is_for_the_operator(status, body):
    found = verdict(status, body)
    assert (found.cause, found.about_account, found.is_failure) == (Cause.ACCOUNT, True, True)


@pytest.mark.parametrize(
    "message", [f"Publisher Model `{PLACE}` was not found", "your team 1a2b3c4d-0000 has no model x"]
)
def test_a_missing_model_may_be_named_with_the_operators_account(message):
    assert verdict(404, said(message)).about_account


CONTEXT = {
    "a message": (
        400,
        said("Invalid 'messages[0].content': string too long. Expected a string with maximum length 9."),
    ),
    "a range": (400, said("Range of input length should be [1, 30720]")),
    "a range of an answer": (400, said("Range of max_tokens should be [1, 8192]")),
    "a limit of tokens": (400, said("Your request exceeded model token limit: 8192")),
    "a maximum": (400, said("Total tokens of image and text exceed max message tokens.")),
    "a sequence": (400, {"message": "length of prompt_tokens (40000) must be less than max_seq_len (32768)."}),
    "another language": (400, said("Prompt 超长")),
    "a code inside": (400, {"error": {"error": {"code": "context_length_exceeded", "message": "no"}}}),
    "a code with capitals": (400, said("no", "ContextLengthExceeded")),
}


@pytest.mark.parametrize(("status", "body"), CONTEXT.values(), ids=CONTEXT)
def test_what_is_too_long_may_fit_elsewhere(status, body):
    found = verdict(status, body)
    assert (found.cause, found.backs_off) == (Cause.CONTEXT, "never")


MODEL = {
    "unavailable": (400, said("Unavailable model: x")),
    "not deployed": (400, said("The model x is not deployed.")),
    "not to be had": (400, said("Unable to access non-serverless model x.")),
    "not loaded": (400, said("Failed to load model x")),
    "none loaded": (400, {"error": "No models loaded. Please load a model in the developer page"}),
    "no endpoint": (404, said("No endpoints found for foo/bar.", 404)),
    "no provider": (404, said("No allowed providers are available for the selected model.")),
    "no deployment": (400, said("There are no healthy deployments for this model.")),
    "removed": (404, {"message": "model 'x' was removed on September 15, 2025."}),
    "not found": (404, said("Not found the model x or Permission denied")),
    "disabled": (400, {"message": "Model disabled"}),
    "another language": (400, said("模型不存在")),
    "a reason": (404, {"reason": "MODEL_NOT_FOUND", "message": "no"}),
    "a code inside": (404, {"detail": {"error": {"code": "model_not_found", "message": "no"}}}),
}


@pytest.mark.parametrize(("status", "body"), MODEL.values(), ids=MODEL)
def test_a_model_that_is_not_there_is_the_experts(status, body):
    found = verdict(status, body)
    assert (found.cause, found.backs_off) == (Cause.MODEL, "in a row")


UNSUPPORTED = {
    "not enabled": (400, [said("Function calling is not enabled for models/x")]),
    "not enabled, an image": (400, said("Image input is not enabled for this model")),
    "not allowed": (400, said("You are not allowed to request logprobs from this model")),
    "only one way": (400, said("Budget 0 is invalid. This model only works in thinking mode.")),
    "only streams": (400, said("This model only support stream mode")),
    "only a value": (400, said("invalid temperature: only 1 is allowed for this model")),
    "a key": (400, {"message": "Malformed input request: #: extraneous key [top_k] is not permitted"}),
    "no template": (400, said("default chat template is no longer allowed, so you must provide a chat template")),
    "no such template": (422, {"error": "Template error: template not found", "error_type": "template_error"}),
    "a 500 about images": (500, said("image input is not supported - hint: you may need to provide the mmproj")),
    "a 500 about tools": (500, said("tools param requires --jinja flag")),
    "a 500 about a length": (500, said("the input length exceeds the context length")),
    "a 500 about a batch": (500, said("input (600 tokens) is too large to process. increase the physical batch size")),
    "a 501": (501, said("This server does not support embeddings. Start it with `--embeddings`")),
    "a bare 501": (501, b""),
}


@pytest.mark.parametrize(("status", "body"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_an_expert_cannot_do_keeps_no_other_request_away(status, body):
    found = verdict(status, body)
    assert (found.cause, found.is_failure, found.backs_off) == (Cause.UNSUPPORTED, True, "never")


PASSING = {
    "paused": (400, {"error": "Bad Request: The endpoint is paused, ask a maintainer to restart it"}),
    "unloaded": (400, {"error": "Model unloaded."}),
    "crashed": (400, {"error": "The model has crashed without additional information. (Exit code: 1)"}),
    "degraded": (400, {"detail": "Function id '9b96': DEGRADED function cannot be invoked"}),
    "out of resources": (400, said("Loading was stopped due to insufficient system resources.")),
    "no capacity": (498, said("Flex capacity exceeded. Please try again later")),
}


@pytest.mark.parametrize(("status", "body"), PASSING.values(), ids=PASSING)
def test_what_passes_is_the_experts_under_any_4xx(status, body):
    found = verdict(status, body)
    assert (found.cause, found.backs_off) == (Cause.BUSY, "in a row")


@pytest.mark.parametrize("status", [400, 405, 406, 411, 422, 431, 495])
def test_a_web_page_is_of_no_api_and_so_no_mistake_of_the_caller(status):
    found = verdict(status, page(f"{status} no"))
    assert (found.is_failure, found.backs_off) == (True, "in a row")


@pytest.mark.parametrize(
    "body",
    [page("400 The plain HTTP request was sent to HTTPS port"), b"Client sent an HTTP request to an HTTPS server.\n"],
    ids=["page", "text"],
)
def test_a_port_that_wants_tls_is_a_wrong_path(body):
    assert verdict(400, body).cause is Cause.PATH


@pytest.mark.parametrize(
    "body",
    [
        said("Invalid 'user': string too long. Expected a string with maximum length 512", "string_above_max_length"),
        said("Error while downloading https://x.example/billing/a.png.", "invalid_image_url"),
        said("Invalid key in 'logit_bias': 999999. Value must be a valid token id."),
        said("'tool_choice' is only allowed when 'tools' are specified."),
        said("stop: too many stop sequences, at most 4 are allowed"),
        said('Invalid value: "your account is suspended, the model is overloaded"'),
        said("Repeated: no", metadata={"messages": [{"code": "model_not_found"}]}),
        said("n must be less than or equal to 8"),
        said("Flagged. The model is unavailable to those whose account is suspended for it", "content_filter"),
    ],
    ids=str,
)
def test_what_sounds_alike_is_still_the_callers(body):
    assert verdict(400, body).cause is Cause.CALLER


@pytest.mark.parametrize("message", ["the provided PTX was compiled with an unsupported toolchain", "out of memory"])
def test_a_500_of_the_expert_itself_counts_against_it(message):
    assert verdict(500, said(message)).backs_off == "in a row"


def test_a_code_is_one_in_every_spelling():
    assert {folded(code) for code in ("rate_limit_error", "RateLimitError", "rate-limit", "RATE_LIMIT")} == {
        "ratelimit"
    }
    assert folded("ThrottlingException") == "throttling"
