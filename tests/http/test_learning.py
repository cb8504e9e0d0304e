"""Learning over HTTP: steps by ratings and undoing them, a shadow, a split, and compared answers."""

import json
from contextlib import asynccontextmanager, contextmanager

import pytest

from coe_server.commands.export import export_journal
from coe_server.http.serving import Comparing
from coe_server.journal.entries import Retention
from coe_server.journal.journal import Journal
from coe_server.routing import artifact as artifacts
from coe_server.routing.evidence import RATINGS_PER_STEP
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.http.test_feedback import engine
from tests.patience import until
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact
from tests.routing.test_own_routes import CODE, LAW, made


@contextmanager
def learning(folder, exploration="learn", engines=None, router=None, **settings):
    """A server that learns, over this router or the small one."""
    journal = Journal(folder / "state" / "j", Retention(10_000, 1e9))
    if router is None:
        artifacts.save(small_artifact(), held_out(), None, folder / "router")
        router = Router(artifacts.load(folder / "router"), exploration=exploration)
    steps = folder / "state" / "learned.json"
    ours = engines or {name: engine(name) for name in SIZES}
    try:
        with running_server(ours, router=router, journal=journal, steps_file=steps, **settings) as running:
            yield running
    finally:
        journal.stop()


def asked(server, text=TEXTS["code"], **fields):
    status, headers, _ = server.chat(model="auto", messages=[{"role": "user", "content": text}], **fields)
    assert status == 200
    return headers


def rate(server, headers, score, **fields):
    body = {"decision_id": headers["x-coe-decision-id"], "score": score, **fields}
    assert server.ask("POST", "/v1/feedback", json.dumps(body))[0] == 200


def told(server, path="/admin/learning", method="GET"):
    status, _, raw = server.ask(method, path)
    return status, json.loads(raw)


def decision(server, headers):
    return json.loads(server.ask("GET", f"/v1/decisions/{headers['x-coe-decision-id']}")[2])


def test_a_hundred_ratings_make_a_step_and_one_request_undoes_it(tmp_path):
    with learning(tmp_path) as server:
        assert told(server) == (
            200,
            {"steps": [], "ratings": 0, "source": None, "pooled": {}, "left_out": {}, "differences": []},
        )
        version = asked(server)["x-coe-router-version"]
        for _ in range(RATINGS_PER_STEP):
            headers = asked(server)
            rate(server, headers, 1.0 if headers["x-coe-expert"] == "coder" else 0.0)
        until(lambda: told(server)[1]["steps"])
        found = told(server)[1]
        assert (found["ratings"], found["source"], len(found["steps"])) == (RATINGS_PER_STEP, "score", 1)
        moved = {(one["category"], one["expert"]): one["after"] for one in found["steps"][0]["moved"]}
        assert 0.0 < moved["code", "coder"] <= 0.05
        assert asked(server)["x-coe-router-version"] == f"{version}+1"
        status, after = told(server, "/admin/learning/undo", "POST")
        assert (status, after["steps"], after["ratings"]) == (200, [], 0)
        status, refused = told(server, "/admin/learning/undo", "POST")
        assert (status, refused["error"]["code"]) == (409, "nothing_to_undo")


def test_a_step_moves_only_experts_that_a_route_chooses_among(tmp_path):
    routes = {
        "code": {"experts": ["coder", "small"], "examples": CODE},
        "law": {"expert": "lawyer", "examples": LAW},
    }
    router = made(tmp_path, {"routes": routes, "default": {"experts": ["small", "lawyer"]}})
    router.exploration = "learn"
    engines = {name: engine(name) for name in router.expert_names}
    with learning(tmp_path, router=router, engines=engines) as server:
        for _ in range(RATINGS_PER_STEP):
            headers = asked(server, CODE[0])
            rate(server, headers, 1.0 if headers["x-coe-expert"] == "coder" else 0.0)
        until(lambda: told(server)[1]["steps"])
        (step,) = told(server)[1]["steps"]
    moved = {(one["category"], one["expert"]) for one in step["moved"]}
    assert {("code", "coder"), ("code", "small")} <= moved
    assert moved <= {("code", "coder"), ("code", "small"), ("default", "small"), ("default", "lawyer")}
    assert router.learned.shift("code", "coder") > 0.0 == router.learned.shift("law", "coder")


def test_a_decision_tells_its_draw_and_a_dry_run_has_none(tmp_path):
    with learning(tmp_path) as server:
        found = decision(server, asked(server))
        drawn = found["exploration"]
        assert sum(drawn["probabilities"].values()) == pytest.approx(1.0, abs=1e-4)
        assert (drawn["drawn"], drawn["conversation"]) == (found["expert"], found["decision_id"])
        body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": TEXTS["code"]}]})
        assert json.loads(server.ask("POST", "/v1/route", body)[2])["exploration"] is None


def test_each_source_of_ratings_keeps_its_own(tmp_path):
    with learning(tmp_path) as server:
        headers = asked(server)
        rate(server, headers, 0.25)
        rate(server, headers, 1.0, source="thumbs")
    export_journal(tmp_path / "state" / "j", tmp_path / "out")
    (line,) = (tmp_path / "out" / "feedback.jsonl").read_text().splitlines()
    assert json.loads(line)["ratings"] == {"score": 0.25, "thumbs": 1.0}


def other_router(folder, mapping_to):
    scores = {name: {one: float(one == mapping_to) for one in SIZES} for name in TEXTS}
    changed = small_artifact()
    rows = {
        name: {one: entry.model_copy(update={"score": scores[name][one]}) for one, entry in row.items()}
        for name, row in changed.manifest.score.items()
    }
    artifacts.save(small_artifact(score=rows), held_out(), None, folder)
    return Router.load(folder)


def test_a_shadow_is_logged_and_never_followed(tmp_path):
    shadow = other_router(tmp_path / "other", "linguist")
    with learning(tmp_path, exploration="off", shadow=shadow) as server:
        headers = asked(server)
        assert headers["x-coe-expert"] == "big"
        found = decision(server, headers)["shadow"]
        assert found == {"router_version": shadow.version, "expert": "linguist", "category": "code"}


def test_a_split_serves_its_share_of_conversations_and_each_stays_with_its_router(tmp_path):
    other = other_router(tmp_path / "other", "linguist")
    with learning(tmp_path, exploration="off", split=((other, 0.5),)) as server:
        versions = {}
        for number in range(40):
            name = f"talk {number}"
            seen = {asked(server, coe={"session": name})["x-coe-router-version"] for _ in range(2)}
            assert len(seen) == 1
            versions[name] = seen.pop()
        shares = [list(versions.values()).count(version) for version in set(versions.values())]
        assert len(shares) == 2
        assert min(shares) > 5


class Judge:
    """An engine that prefers the answer of one expert, whichever comes first."""

    def __init__(self, inner, preferred):
        self._inner = inner
        self._preferred = preferred

    def __getattr__(self, name):
        return getattr(self._inner, name)

    @asynccontextmanager
    async def send(self, request):
        asked_of_it = json.loads(request.whole_body)["messages"][-1]["content"]
        first = asked_of_it.partition("<answer-1>")[2].partition("</answer-1>")[0]
        yield Verdict("1" if self._preferred in first else "2")


class Verdict:
    status = 200
    headers = (("content-type", "application/json"),)

    def __init__(self, text):
        message = {"role": "assistant", "content": text}
        self._body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()

    async def chunks(self):
        yield self._body


def counted(server, result):
    text = server.ask("GET", "/metrics")[2].decode()
    mark = f'coe_comparisons_total{{result="{result}"}} '
    return float(text.partition(mark)[2].partition("\n")[0] or 0)


def test_the_metrics_have_the_width_of_each_interval_that_is_known(tmp_path):
    with learning(tmp_path, exploration=0.9) as server:
        for _ in range(2 * RATINGS_PER_STEP):
            headers = asked(server)
            rate(server, headers, 1.0 if headers["x-coe-expert"] == "coder" else 0.0)
        until(lambda: any(one["difference"] is not None for one in told(server)[1]["differences"]))
        known = [one for one in told(server)[1]["differences"] if one["difference"] is not None]
        raw = server.ask("GET", "/metrics")[2].decode()
        for one in known:
            name = f'coe_learning_interval_width{{category="{one["category"]}",expert="{one["other"]}"}} '
            assert float(raw.partition(name)[2].partition("\n")[0]) == pytest.approx(one["high"] - one["low"], abs=2e-4)
        assert raw.count("\ncoe_learning_interval_width{") == len(known)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_compared_with_another_experts_in_the_background(tmp_path, stream):
    engines = {name: engine(name) for name in SIZES}
    engines["linguist"] = Judge(engines["linguist"], "coder")
    asks = Comparing(1.0, "linguist", remote=False)
    with learning(tmp_path, exploration="off", engines=engines, compare=asks) as server:
        for name in SIZES:  # only loaded experts are compared
            assert server.ask("POST", f"/admin/experts/{name}/load")[0] == 200
        body = {"model": "auto", "messages": [{"role": "user", "content": TEXTS["code"]}], "stream": stream}
        status, headers, _ = server.ask("POST", "/v1/chat/completions", json.dumps(body))
        assert (status, headers["x-coe-expert"]) == (200, "big")
        until(lambda: counted(server, "done") == 1)
        until(lambda: told(server, "/admin/overview")[0] == 200)
    export_journal(tmp_path / "state" / "j", tmp_path / "out")
    (line,) = (tmp_path / "out" / "feedback.jsonl").read_text().splitlines()
    pair = json.loads(line)["compared"]
    assert (pair["expert"], pair["score"], pair["own_score"]) == ("coder", 1.0, 0.0)
    assert pair["own_expected"] == pytest.approx(0.8, abs=0.1)


def test_a_comparison_is_dropped_where_an_expert_is_not_loaded(tmp_path):
    asks = Comparing(1.0, "linguist", remote=False)
    with learning(tmp_path, exploration="off", compare=asks) as server:
        asked(server)
        until(lambda: counted(server, "dropped") == 1)
        assert counted(server, "done") == 0


def test_remote_experts_are_not_compared_unless_allowed(tmp_path):
    asks = Comparing(1.0, "linguist", remote=False)
    with learning(tmp_path, exploration="off", compare=asks, remote=("coder",)) as server:
        for name in ("big", "linguist"):
            assert server.ask("POST", f"/admin/experts/{name}/load")[0] == 200
        asked(server)
        until(lambda: counted(server, "dropped") == 1)
