"""The page in a real browser: asked, seen to answer, to explain itself and to move experts."""

import os

import pytest
from axe_playwright_python.base import AXE_SCRIPT

from coe_server.keys import Key, Keyring, hashed
from tests.http.server import running_server
from tests.page.conftest import engine
from tests.patience import until

SCREENS = {
    "desktop-light": {"width": 1280, "height": 900, "color_scheme": "light"},
    "desktop-dark": {"width": 1280, "height": 900, "color_scheme": "dark"},
    "phone-light": {"width": 390, "height": 844, "color_scheme": "light"},
    "phone-dark": {"width": 390, "height": 844, "color_scheme": "dark"},
}
QUESTIONS = {"linguist": "bonjour merci maison chien", "big": "integral equation theorem prime"}


def other_than(visit):
    """An expert that is not on the device, with a question that it is best at."""
    return next((name, asked) for name, asked in QUESTIONS.items() if visit.shelf_of(name) != "device")


@pytest.mark.parametrize("screen", SCREENS)
def test_a_question_is_answered_explained_and_brings_its_expert_to_the_device(visit, served, screen):
    opened = visit(**SCREENS[screen])
    page = opened.page
    expert, question = other_than(opened)
    opened.ask(question)
    page.wait_for_selector(f'[data-tier="device"] [data-expert="{expert}"]')
    page.wait_for_selector("#rating:not([hidden])")
    assert page.inner_text("#answer") == f"{expert} answers: {question}"
    page.wait_for_selector('[data-tier="device"] .amount:has-text("1.0 GiB of 1.5 GiB")')
    assert page.inner_text("#decision .chosen strong") == expert
    assert page.locator("#decision .bars li").count() == 3
    ranked = page.locator("#decision .ranking tbody th").all_inner_texts()
    assert ranked[0] == expert
    assert set(ranked) == {"coder", "linguist", "big"}
    assert expert in page.inner_text("#decisions tr:first-child")
    arrivals = page.locator("#moves tr").filter(has_text=expert).filter(has_text="→ device")
    assert arrivals.count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") == SCREENS[screen]["width"]  # nothing sticks out
    if "COE_SCREENSHOTS" in os.environ:
        page.screenshot(path=f"{os.environ['COE_SCREENSHOTS']}/{screen}.png", full_page=True)


def test_an_answer_is_seen_to_stream(visit):
    opened = visit()
    opened.page.evaluate(
        "() => { window.lengths = new Set(); new MutationObserver(() => "
        "lengths.add(document.getElementById('answer').textContent.length))"
        ".observe(document.getElementById('answer'), {childList: true}); }"
    )
    opened.ask("bonjour " * 90)  # a second and a half
    opened.page.wait_for_selector("#rating:not([hidden])")
    assert opened.page.evaluate("lengths.size") > 3


def test_waiting_and_answering_experts_are_shown_on_the_cards(visit):
    with running_server({"slow": engine("slow", start_seconds=1.5)}, keepalive_seconds=0.2) as starting, visit.closes():
        opened = visit(server=starting)
        page = opened.page
        opened.ask("well " * 90)
        page.wait_for_selector('#answer-by:has-text("waiting for slow, which is starting")')
        page.wait_for_selector('[data-expert="slow"] .users:has-text("1 waiting")')
        page.wait_for_selector('[data-tier="device"] [data-expert="slow"] .users:has-text("1 answering")')
        assert page.inner_text("#answer-by") == "slow answers"
        page.wait_for_selector('#decision .facts-line:has-text("was on disk · waited 1.")')
        page.close()  # before the server


def test_the_first_view_is_light(visit):
    opened = visit()
    assert 20_000 < opened.first_view_bytes < 200_000


def test_everything_can_be_done_by_keyboard(visit):
    page = visit().page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("python function loop")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#rating:not([hidden])")
    page.focus('#rating [data-score="0"]')
    page.keyboard.press("Enter")
    page.wait_for_selector("#rating-text:has-text('Noted as bad')")


def test_a_rating_reaches_the_decision_log(visit):
    opened = visit()
    opened.ask("bonjour merci")
    opened.page.wait_for_selector("#rating:not([hidden])")
    with opened.page.expect_response("**/v1/feedback") as rated:
        opened.page.click('#rating [data-score="1"]')
    name = rated.value.request.post_data_json["decision_id"]
    found = opened.page.evaluate(f"fetch('/v1/decisions/{name}').then((answer) => answer.json())")
    assert found["feedback"] == {"score": 1, "comment": None}


def test_words_are_words_whatever_they_look_like(visit):
    opened = visit()
    words = "bonjour <img src=x onerror=alert(1)><script>alert(2)</script>"
    opened.ask(words)
    opened.page.wait_for_selector("#rating:not([hidden])")
    assert words in opened.page.inner_text("#answer")
    assert opened.page.locator("main img, main script").count() == 0


def test_what_was_measured_is_drawn_with_the_router_above_the_best_expert(visit):
    page = visit().page
    assert "+6.0 points over big" in page.inner_text("#quality-lead")
    assert {"the router", "cheap", "big"} <= set(page.locator("#quality text").all_text_contents())
    router, best = (page.locator(f"#quality .mark.{kind} circle").last for kind in ("router", "expert"))
    assert float(router.get_attribute("cy")) < float(best.get_attribute("cy"))


def drawn(page, selector):
    """The box of what the selector finds; a chart is drawn anew when its width is known."""
    boxes = []
    until(lambda: boxes.append(page.locator(selector).bounding_box()) or boxes[-1] is not None)
    return boxes[-1]


def test_a_name_in_the_chart_is_not_covered_by_the_router_beside_it(visit):
    measured = {
        "prompts": 9,
        "router": {"cost": 12.0, "score": 0.815},
        "best_single": {"expert": "big", "score": 0.62},
        "experts": [{"name": "big", "cost": 30, "score": 0.62}, {"name": "small", "cost": 3, "score": 0.3}],
        "budgets": [{"name": "cheap", "cost": 11.0, "score": 0.825}],
        "curve": [{"cost": 3, "score": 0.65}, {"cost": 11, "score": 0.825}],
        "hull": [{"cost": 3, "score": 0.3}, {"cost": 30, "score": 0.62}],
    }
    page = visit(width=400).page
    page.evaluate("async (quality) => (await import('/page/quality.js')).showQuality(quality)", measured)
    page.wait_for_selector("#quality text:text-is('cheap')")
    name = drawn(page, "#quality text:text-is('cheap')")
    for other in ("#quality text:text-is('the router')", "#quality .mark.router circle"):
        box = drawn(page, other)
        beside = name["x"] + name["width"] <= box["x"] or name["x"] >= box["x"] + box["width"]
        assert beside or name["y"] + name["height"] <= box["y"] or name["y"] >= box["y"] + box["height"]


@pytest.mark.parametrize("width", [360, 1280])
def test_no_name_in_the_chart_covers_another_name_or_a_mark(visit, width):
    near = [("cheap", 11.0, 0.825), ("balanced", 11.6, 0.82), ("dear", 12.4, 0.81)]
    experts = [
        ("big", 30, 0.62),
        ("also-big", 29, 0.60),
        ("small", 3, 0.3),
        *((f"tiny-{n}", 3.1, 0.31) for n in range(9)),
    ]
    measured = {
        "prompts": 9,
        "router": {"cost": 12.0, "score": 0.815},
        "best_single": {"expert": "big", "score": 0.62},
        "experts": [{"name": name, "cost": cost, "score": score} for name, cost, score in experts],
        "budgets": [{"name": name, "cost": cost, "score": score} for name, cost, score in near],
        "curve": [{"cost": 3, "score": 0.65}, {"cost": 11, "score": 0.825}],
        "hull": [{"cost": 3, "score": 0.3}, {"cost": 30, "score": 0.62}],
    }
    page = visit(width=width).page
    page.evaluate("async (quality) => (await import('/page/quality.js')).showQuality(quality)", measured)
    page.wait_for_selector("#quality text:text-is('cheap')")
    names = page.locator("#quality .mark text")
    assert "the router" in names.all_text_contents()
    boxes = [(name.text_content(), name.bounding_box()) for name in names.all()]
    marks = [("mark", circle.bounding_box()) for circle in page.locator("#quality .mark circle").all()]
    covered = [
        (one, other) for one, box in boxes for other, its in boxes + marks if its is not box and overlap(box, its)
    ]
    assert covered == [], (boxes, marks)
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for _, box in boxes)


def overlap(one, other):
    beside = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
    return not (beside or one["y"] + one["height"] <= other["y"] or other["y"] + other["height"] <= one["y"])


def test_of_many_experts_a_screen_shows_many_and_which_shelf_they_are_on(visit):
    awake = {"state": "device", "residency": "device", "bytes": {"device": 2**30, "host": 3 * 2**30}}
    asleep = {"state": "host", "residency": "host", "bytes": {"device": 0, "host": 2**30}}
    away = {"state": "disk", "residency": "disk", "bytes": {"device": 0, "host": 0}}
    many = [{"name": f"expert-{number:03d}", **away} for number in range(150)]
    experts = [{"name": "awake", **awake}, {"name": "asleep", **asleep}, *many]
    full = {tier: {"used": 4 * 2**30, "capacity": 8 * 2**30} for tier in ("device", "host")}
    page = visit(height=800).page
    page.evaluate(
        """async ([experts, tiers]) => {
            const place = document.getElementById("shelves");
            place.replaceChildren();
            new (await import("/page/shelves.js")).Shelves(place).show(experts, tiers);
            scrollTo(0, 0);
        }""",
        [experts, full],
    )
    seen = page.viewport_size["height"]
    label = page.locator('.shelf[data-tier="disk"] h3').bounding_box()
    assert label["y"] + label["height"] <= seen
    cards = page.locator('[data-tier="disk"] .card').evaluate_all(
        "all => all.map(c => c.getBoundingClientRect().bottom)"
    )
    assert sum(bottom <= seen for bottom in cards) > 50
    assert page.inner_text('.shelf[data-tier="host"] .kept') == "3.0 GiB for loaded experts"


TWO_CARDS = [{"used": 17 * 2**30, "capacity": 22 * 2**30}, {"used": 11 * 2**30, "capacity": 22 * 2**30}]


def on(size_bytes, *cards):
    return [{"index": card, "bytes": size_bytes} for card in cards]


def put_on_cards(page):
    """An expert on both cards, one more on the first, one that comes there, and two that sleep on the second."""
    host = {"state": "host", "residency": "host", "bytes": {"device": 2**29, "host": 6 * 2**30}}
    awake = {"state": "device", "residency": "device", "leases": 3}
    experts = [
        {"name": "wide", **awake, "cards": on(10 * 2**30, 0, 1), "bytes": {"device": 20 * 2**30, "host": 2**30}},
        {"name": "single", **awake, "cards": on(6 * 2**30, 0), "bytes": {"device": 6 * 2**30, "host": 2**30}},
        {"name": "coming", "state": "starting", "residency": "disk", "cards": on(2**30, 0), "bytes": host["bytes"]},
        {"name": "tired", **host, "cards": on(2**29, 1)},
        {"name": "worn", **host, "cards": on(2**29, 1)},
    ]
    device = {"used": 28 * 2**30, "capacity": 44 * 2**30, "cards": TWO_CARDS}
    page.evaluate(
        """async ([experts, tiers]) => {
            const place = document.getElementById("shelves");
            place.replaceChildren();
            new (await import("/page/shelves.js")).Shelves(place).show(experts, tiers);
        }""",
        [experts, {"device": device, "host": {"used": 2**33, "capacity": 2**35}}],
    )


@pytest.mark.parametrize("screen", SCREENS)
def test_each_of_several_cards_shows_its_bytes_and_whose_they_are(visit, screen):
    page = visit(**SCREENS[screen]).page
    put_on_cards(page)
    first, second = page.locator(".gpu").all()
    assert first.locator("h4").inner_text() == "Card 0"
    assert first.locator(".gpu-free").inner_text() == "5.0 GiB free"
    assert first.locator(".gpu-amount").inner_text() == "17.0 GiB used of 22.0 GiB"
    assert first.locator(".gpu-names li").all_inner_texts() == [
        "wide 10.0 GiB · also on card 1",
        "single 6.0 GiB",
        "coming 1.0 GiB · room held while it comes",
    ]
    assert second.locator(".gpu-names li").all_inner_texts() == [
        "wide 10.0 GiB · also on card 0",
        "tired, worn asleep, keep 1.0 GiB",
    ]
    widths = first.locator(".part").evaluate_all("all => all.map((one) => parseFloat(one.style.inlineSize))")
    assert widths == [pytest.approx(100 * size / 22, abs=0.01) for size in (10, 6, 1)]
    assert page.inner_text('[data-tier="device"] .amount') == "28.0 GiB of 44.0 GiB on 2 cards"
    assert page.inner_text('[data-expert="wide"] .where') == "card 0, 1"
    assert page.locator('[data-tier="device"] .edge').is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") == SCREENS[screen]["width"]
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("axe.run(document)")
    assert [(fault["id"], fault["nodes"][0]["target"]) for fault in found["violations"]] == []
    if "COE_SCREENSHOTS" in os.environ:
        page.screenshot(path=f"{os.environ['COE_SCREENSHOTS']}/cards-{screen}.png", full_page=True)


@pytest.mark.parametrize(
    ("names", "told"),
    [(("sql", "bash"), "also sql, bash"), (tuple(f"a{n}" for n in range(150)), "also 150 more names")],
)
def test_names_that_share_an_engine_stand_on_its_card(visit, names, told):
    engines = {"coder": engine("coder"), "big": engine("big")}
    with running_server(engines, bases=dict.fromkeys(names, "coder")) as running, visit.closes():
        page = visit(server=running).page
        page.wait_for_selector('[data-expert="coder"] .shared:not(:empty)')
        assert page.inner_text('[data-expert="coder"] .shared') == told
        assert page.inner_text('[data-expert="big"] .shared') == ""
        assert page.locator(".card").count() == 2


def test_one_card_is_a_bar_of_its_shelf(visit):
    page = visit().page
    assert page.locator(".gpus").first.is_hidden()
    assert page.locator('[data-tier="device"] .edge').is_visible()
    assert page.locator(".where").all_inner_texts() == [""] * 3


def test_motion_is_left_out_where_the_browser_asks_for_that(visit):
    opened = visit(reduced_motion="reduce")
    expert, question = other_than(opened)
    opened.ask(question)
    opened.page.wait_for_selector(f'[data-tier="device"] [data-expert="{expert}"]')
    assert opened.page.evaluate("document.getAnimations().length") == 0


def test_what_happened_before_is_told_and_not_played_again(visit):
    before = visit()
    expert, question = other_than(before)
    before.ask(question)
    before.page.wait_for_selector(f'[data-tier="device"] [data-expert="{expert}"]')
    before.page.wait_for_selector("#rating:not([hidden])")
    page = visit().page
    page.wait_for_selector(f"#moves tr:has-text('{expert}')")
    assert page.locator(".card.arrived").count() == 0


def test_without_a_router_or_a_log_experts_are_asked_by_name(visit):
    with running_server({name: engine(name) for name in ("one", "two")}) as bare, visit.closes():
        opened = visit(server=bare)
        page = opened.page
        assert page.inner_text("#router") == "no router yet: experts answer by their names"
        page.select_option("#model", "two")
        opened.ask("well?")
        page.wait_for_selector('[data-tier="device"] [data-expert="two"]')
        page.wait_for_selector("#answer:not([aria-busy])")
        assert page.inner_text("#answer") == "two answers: well?"
        assert page.inner_text("#decision .reason") == "requested"
        assert "was on disk" in page.inner_text("#decision .facts-line")  # not where the answer has brought it since
        assert page.locator("#quality-section").is_hidden()
        assert page.locator("#rating").is_hidden()  # what is not kept cannot be rated
        page.close()  # before the server


def test_with_an_admin_key_the_browser_asks_for_it_once_and_all_of_the_page_works(visit):
    ring = Keyring((Key(name="boss", sha256=hashed("a-secret"), admin=True),))
    with running_server({"one": engine("one")}, keyring=ring) as locked, visit.closes():
        opened = visit(server=locked, http_credentials={"username": "any", "password": "a-secret"})
        opened.ask("well?")
        opened.page.wait_for_selector('[data-tier="device"] [data-expert="one"]')
        opened.page.wait_for_selector("#answer:not([aria-busy])")
        assert opened.page.inner_text("#answer") == "one answers: well?"
        assert opened.page.inner_text("#status") == "live"
        opened.page.close()


@pytest.mark.parametrize("screen", SCREENS)
def test_axe_finds_no_fault(visit, screen):
    page = visit(**SCREENS[screen]).page
    page.fill("#question", QUESTIONS["big"])
    page.click("#send")
    page.wait_for_selector("#rating:not([hidden])")
    page.click("summary")
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate(
        "Promise.all(document.getAnimations().map((one) => one.finish === undefined || "
        "one.effect.getTiming().iterations === Infinity ? null : one.finished.catch(() => null)))"  # or cut short
        ".then(() => axe.run(document))"
    )
    assert len(found["passes"]) > 20
    assert [(fault["id"], fault["nodes"][0]["target"]) for fault in found["violations"]] == []
