"""A whole server on a pretend machine with one card, as newcomers have it: defaults, and models by their hub ids."""

from tests.cuda.cards import GIB
from tests.cuda.test_two_cards import serving
from tests.patience import until

LOG = "server.log"
AWQ = {name: f"Qwen/{name}" for name in ("Qwen2.5-7B-AWQ", "Qwen2.5-Coder-7B-AWQ", "Qwen2.5-Math-7B-AWQ")}


def expert(name, model, **more):
    return {"name": name, "engine": "vllm", "model": model, **more}


def starts(folder):
    """What the log tells of starts: how many succeeded, and what else it warns of."""
    lines = (folder / LOG).read_text().splitlines()
    return sum("disk -> device" in line for line in lines), [line for line in lines if "WARNING" in line]


def test_three_small_models_by_hub_id_start_at_the_first_try_and_two_are_awake(tmp_path, pretend_machine, downloaded):
    cards, environment = pretend_machine(24 * GIB, ram=64 * GIB)
    experts = [expert(name, downloaded(model), preload="host") for name, model in AWQ.items()]
    with serving(tmp_path, environment, experts, memory={}, kv_cache="2GiB") as served:
        until(served.is_ready)
        assert served.residency() == dict.fromkeys(AWQ, "host"), "all three in host memory, none by trial and error"
        assert starts(tmp_path) == (3, [])
        chat, coder, maths = AWQ
        first = {name: served.complete(name) for name in (chat, coder)}
        assert served.residency() == {chat: "device", coder: "device", maths: "host"}
        first[maths] = served.complete(maths)
        assert sorted(served.residency().values()) == ["device", "device", "host"]
        assert {name: served.complete(name) for name in AWQ} == first
        assert starts(tmp_path) == (3, []), "what was asleep was woken"
        (last,) = (name for name, tier in served.residency().items() if tier == "host")
        assert served.ask("POST", f"/admin/experts/{last}/unload")[0] == 200
        assert served.complete(last) == first[last]
        assert starts(tmp_path) == (4, []), "it started beside an expert that is awake"
        assert sorted(served.residency().values()) == ["device", "device", "host"]
    until(lambda: cards.held() == {})


def test_six_sleepers_and_an_awake_large_expert_live_on_a_card_of_141_gb(tmp_path, pretend_machine, downloaded):
    cards, environment = pretend_machine(141 * 10**9, ram=256 * GIB)
    large = expert("large", downloaded("org/large", 20 * GIB), preload="device")
    sleepers = [expert(f"s{number}", downloaded(f"org/s{number}"), preload="host") for number in range(6)]
    with serving(tmp_path, environment, [large, *sleepers], memory={}, kv_cache="2GiB") as served:
        until(served.is_ready)
        asleep = {one["name"]: "host" for one in sleepers}
        assert served.residency() == {"large": "device"} | asleep
        assert starts(tmp_path) == (7, [])
        told = {one["name"]: one for one in served.ask("GET", "/admin/experts")[1]}
        assert told["large"]["bytes"]["device"] > 22 * GIB
        assert all(0 < told[name]["bytes"]["device"] < GIB for name in asleep), "what a sleeper keeps"
        answers = {name: served.complete(name) for name in told}
        assert len(set(answers.values())) == 7
        assert served.residency()["large"] == "device"
    until(lambda: cards.held() == {})


def test_a_second_start_reserves_what_the_first_one_measured(tmp_path, pretend_machine, downloaded):
    """The card has room for both experts as they are measured, and not as they are estimated."""
    _, environment = pretend_machine(18 * GIB, ram=64 * GIB)
    experts = [expert(name, downloaded(f"org/{name}"), preload="device") for name in "ab"]
    when_ready = []
    for _ in range(2):
        with serving(tmp_path, environment, experts, memory={}, kv_cache="2GiB") as served:
            until(served.is_ready)
            when_ready.append(served.residency())
            for name in "ab":
                served.complete(name)
    assert when_ready[0] != when_ready[1] == {"a": "device", "b": "device"}
