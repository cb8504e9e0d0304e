"""The codes and words by which servers tell what an error is about. Collected from their documentation; pure data."""

from __future__ import annotations

import re

_NOT_IN_A_CODE = re.compile(r"[^a-z0-9]")


def folded(code: str) -> str:
    """A code as it is compared: `rate_limit_error`, `RateLimitError` and `rate-limit` are one."""
    return _NOT_IN_A_CODE.sub("", code.lower()).removesuffix("error").removesuffix("exception")


def _codes(text: str) -> frozenset[str]:
    return frozenset(map(folded, text.split()))


# Codes and types of errors inside a 200, by the status that the same server otherwise uses:
# OpenAI's, Anthropic's (https://docs.anthropic.com/en/api/errors), Google's, vLLM's and OpenRouter's.
STATUS_OF = {
    code: status
    for status, codes in {
        400: "invalid_request_error invalid_prompt bad_request_error invalid_argument"
        " context_length_exceeded exceed_context_size_error",
        401: "authentication_error invalid_api_key unauthenticated unauthorized",
        402: "billing_error payment_required insufficient_credits insufficient_balance",
        403: "permission_error permission_denied forbidden",
        404: "not_found_error model_not_found",
        413: "request_too_large",
        422: "unprocessable_entity_error",
        429: "rate_limit_error rate_limit_exceeded rate_limit_reached insufficient_quota quota_exceeded"
        " request_quota_exceeded token_quota_exceeded too_many_requests resource_exhausted throttling throttled",
        500: "server_error internal_server_error internal_error api_error",
        503: "service_unavailable unavailable model_overloaded engine_overloaded server_overloaded server_is_overloaded"
        " capacity_exceeded slow_down",
        504: "timeout_error gateway_timeout deadline_exceeded",
        529: "overloaded_error",
    }.items()
    for code in _codes(codes)
}

CONTEXT_CODES = _codes("context_length_exceeded exceed_context_size context_window_exceeded request_too_large")
CONTEXT_WORDS = re.compile(
    r"context[ _]?(length|size|window|limit)|(maximum|max) (prompt|input|sequence|model) length|max_(model|seq)_len"
    r"|(prompt|input|request|message|conversation)s? (\(.{0,60}\) )?(is|are|was) too (long|large)"
    r"|(messages|prompt|input|instructions)[\w\[\].]{0,80}['\"]?: string too long"
    r"|max(_completion|_output)?_tokens.{0,60}(too large|maximum allowed)|at most \d+ (completion|output) tokens"
    r"|too many (input |prompt )?tokens|valid range of max_tokens|(request|prompt|input) too (large|long)"
    r"|range of (input|prompt|max_tokens)\b.{0,20} should be|reduce the length of the (messages|prompt|input)"
    r"|input validation error: `inputs`|exceed\w* .{0,40}\btokens? limit\b|超长|长度超"
    r"|tokens?\b.{0,80}(exceed|longer than|(?<!be )greater than|must be <=).{0,80}(max|limit|allowed|context|\d)"
    r"|tokens?\b.{0,60}\btoo large for (this|the) model"
)
ACCOUNT_CODES = _codes(
    "billing_error billing_hard_limit_reached billing_not_active insufficient_quota insufficient_balance"
    " insufficient_credits insufficient_user_quota not_enough_balance payment_required invalid_api_key"
    " authentication_error permission_error permission_denied access_denied access_terminated account_deactivated"
    " account_disabled arrearage organization_restricted quota_exceeded credit_limit_exceeded api_key_invalid"
    " unauthenticated budget_exceeded"
)
ACCOUNT_WORDS = re.compile(
    r"api[ _-]?(key|token)|(access|auth|authorization|bearer|security|session) token|credential|credit balance"
    r"|invalid_grant|\btoken (is |has |was )?(been )?(expired|revoked)|signature (has )?expired"
    r"|(insufficient|out of|not enough|no|more|remaining|add|buy) (credit|balance|fund)"
    r"|balance (is )?(too low|insufficient|exhausted)"
    r"|\bbilling\b|\bpayment\b|prepaid|unpaid"
    r"|\b(current|your|monthly|daily|usage|token|free|request|exceeded|insufficient)[ _]quota\b|invoice|subscription"
    r"|\bquota (is )?(exceeded|exhausted)|(spend|spending|usage|credit) (limit|cap)s?\b|overdue|arrear"
    r"|budget has been exceeded|over budget|good standing|free (tier|plan|trial)"
    r"|(account|organi[sz]ation|workspace|tenant)\b.{0,60}(disabled|restricted|suspended|deactivated|blocked|banned"
    r"|inactive|not active|verified|terminated|limit)|\bin organi[sz]ation\b"
    r"|\b(your|this|for) (account|organi[sz]ation|workspace|team|project)\b"
    r"|not (allowed|authori[sz]ed|permitted|eligible|entitled) to (use|access|invoke|call)\b|eligible for using"
    r"|^\W*(model )?access denied|access to (the |this )?model\b.{0,40}denied"
    r"|terms acceptance|accept (the|our) (\w+ ){0,2}(terms|licen[cs]e|agreement)"
    r"|\b(location|country|region|territory)\b[^.;]{0,40}not (supported|available|allowed)"
    r"|not (supported|available|allowed) in (your|this) (location|country|region)"
    r"|service tier|余额|欠费|充值|账户|密钥|额度|令牌|无权|token非法"
)
# Names of the operator's account: organisations, projects, Google's and Amazon's resources, Cloudflare's and xAI's ids.
ACCOUNT_IDS = re.compile(
    r"\b(org|proj|acct)[-_](?=[a-z]*\d)[a-z0-9]{6,}|\bprojects/[\w-]+/locations/|\barn:aws[\w-]*:[\w-]*:[\w-]*:\d{12}:"
    r"|\baccounts/[0-9a-f]{16,}|\bteam [0-9a-f]{8}-"
)

# What is said of a policy may threaten the account, too; it is about the prompt.
POLICY_CODES = _codes(
    "content_filter content_policy_violation policy_violation responsible_ai_policy_violation data_inspection_failed"
    " invalid_prompt moderation_blocked sensitive_content_detected input_text_sensitive_content_detected"
)

MODEL_CODES = _codes(
    "model_not_found model_not_available model_not_supported model_decommissioned model_deprecated model_retired"
    " model_gone invalid_model unknown_model unavailable_model deployment_not_found model_unavailable model_load_failed"
)
MODEL_WORDS = re.compile(
    r"\b(models?|deployment)\b(?:(?![.;,] | (parameter|argument|option|field|file|image|function|tool)).){0,120}"
    r"(not exist|not (be )?found|not loaded|not (a )?valid|not available|no longer|not (currently )?served"
    r"|not deployed|is unavailable|retired|deprecated|decommission|discontinu|sunset|(been|was|were) removed"
    r"|shut ?down|end[ -]of[ -](its )?life)|\bmodel (identifier|id|name) is invalid"
    r"|\bmodel (is |was |has been )?(currently )?disabled|no models? (is |are )?loaded"
    r"|\b(model|deployment) ['\"`]?[\w./:@-]+['\"`]? is not supported"
    r"|(unknown|invalid|no such|not a valid|retired|deprecated|nonexistent|unavailable) (model|deployment)\b"
    r"(?! (length|parameter|argument|option|output))"
    r"|(unable to|cannot|can't|could not|failed to) (access|find|load|locate) (the )?([\w-]+ )?model\b"
    r"|not found (the |any )?model\b|llm provider not provided|模型.{0,20}(不存在|不可用|已下线|未开通|无可用)"
    r"|\bno (allowed |healthy |available |active )?(endpoint|provider|deployment)s?\b(?! (found )?(that )?support)"
)
MODEL_ALONE = re.compile(r"models?[:/] ?\S+")  # the whole text of Anthropic's 404

# What passes, under a status that does not say so.
BUSY_WORDS = re.compile(
    r"\b(model|endpoint|deployment|server|service|engine|instance)( [\w./:@-]+)?( is| has| was)?( been)?"
    r"( currently| still| temporarily)? (paused|stopped|unloaded|crashed|overloaded|loading|starting|scaled to zero"
    r"|not ready|not running|at capacity|busy|degraded)\b"
    r"|\bdegraded function\b|try again (later|in (a|\d))|temporarily (unavailable|overloaded)|capacity exceeded"
    r"|insufficient (system )?resources|out of memory"
)

# Nothing here serves the path, or it is another protocol's port.
PATH_WORDS = re.compile(
    r"could not route to|\bno route for\b|http request (was )?(sent )?to (an )?https|invalid hostname"
)

UNSUPPORTED_CODES = _codes(
    "unsupported_parameter unsupported_value unknown_parameter unsupported_feature extra_forbidden"
    " unsupported_content_type not_implemented unsupported_operation unrecognized_argument operation_not_supported"
)
UNSUPPORTED_WORDS = re.compile(
    r"unsupported|(not|n['\u2019]t) (currently |yet )?(be )?supported"
    r"|(does not|doesn't|do not|don't|cannot|can't) support|support\w* only\b|\bonly (support|work|accept|allow)s?\b"
    r"|not (allowed|enabled|available|compatible)\b[^.;]{0,60}\bmodels?\b|\bonly \S+ is (allowed|supported)\b"
    r"|(unrecogni[sz]ed|unknown|unexpected|unpermitted) (request )?(argument|parameter|field|key|option)"
    r"|(unrecogni[sz]ed|unknown|unexpected|unpermitted) (name|member|variant)"
    r"|extra (inputs?|fields?) (is |are )?not (permitted|allowed)|extraneous key|additional propert|not implemented"
    r"|requires? (the )?--[a-z]|is not a multimodal model|at most 0 |does not work with the specified model"
    r"|enabled only for|chat[ _.]template|template not found"
)
# A 500 about what was asked, in narrow words: the text of a 500 may be any program's.
REQUEST_IN_500 = re.compile(
    r"\b(images?|audio|videos?|tools?|param(eter)?s?|content)\b[^.;]{0,40}"
    r"(not supported|unsupported|requires? (the )?--)"
    r"|unsupported (content|param|image|audio|tool)s?\b"
    r"|context (length|size|window)|too (large|long) to process|(prompt|input) is too (long|large)"
)

_NOT_THERE = r"(not (be )?found|not exist|no such|expired)"
ID_WORDS = re.compile(
    r"\b(resp|conv|msg|file|item|thread|asst|vs|run|batch|cmpl|chatcmpl|rs|fc)[-_](?=[a-z-]*\d)[a-z0-9-]{3,}"
    rf"|previous[ _]response|\b(response|conversation|thread|assistant|vector store)\b(?! format).{{0,80}}{_NOT_THERE}"
    rf"|\b(file|message|item)\b.{{0,20}}(\bid\b|['\"`:]).{{0,60}}{_NOT_THERE}"
    r"|no (response|conversation|file|thread|item)\b.{0,40}found"
)
NO_REASON = re.compile(
    r"\b(\d{3}|(bad|invalid)[ _]?request|not[ _]?found|unprocessable[ _]?(entity|content)|not[ _]?implemented"
    r"|(\w+[ _]?)?error)\b|[^\w\s]"
)
# The status of an error inside a 200 without code and type, by its text.
STATUS_WORDS = (
    (400, CONTEXT_WORDS),
    (404, re.compile(r"unexpected endpoint")),
    (429, re.compile(r"\brate[ -]limit|too many requests")),
    (503, re.compile(r"\boverloaded\b|temporarily unavailable")),
)
