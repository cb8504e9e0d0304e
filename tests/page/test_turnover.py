"""The page while experts come and go: a card for each that is there, and none for those that left."""

from tests.cluster.servers import expert, in_thread


def test_the_page_follows_a_reload(visit):
    settings = {"log": {"decisions": False}, "memory": {"device": "4GiB", "host": "8GiB"}}
    settings |= {"experts": [expert("a"), expert("b")]}
    with in_thread(settings) as server, visit.closes():
        page = visit(server=server).page
        page.wait_for_selector('.card[data-expert="a"]')
        settings["experts"] = [expert("b"), expert("c", preload="device")]
        assert server.ask("POST", "/admin/reload")[0] == 200
        page.wait_for_selector('[data-tier="device"] .card[data-expert="c"]')
        page.wait_for_selector('.card[data-expert="a"]', state="detached")
        assert page.locator(".card").count() == 2
