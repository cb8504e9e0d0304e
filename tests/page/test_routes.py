"""Editing routes on the page, in a real browser."""

from playwright.sync_api import expect

from tests.http.test_route_editing import TEXT, file, journal, serving_routes  # noqa: F401 - fixtures


def test_this_was_law_adds_an_example_and_undo_takes_it_back(visit, file, journal):  # noqa: F811
    with serving_routes(file, journal) as server:
        server.chat(model="auto", messages=[{"role": "user", "content": "My tenant broke a window"}])
        seen = visit(server=server)
        page = seen.page
        expect(page.locator("#routes-text")).to_have_value(TEXT)
        page.locator("#decisions select").first.select_option("law")
        expect(page.locator("#routes-said")).to_have_text("Its prompt is now an example of law.")
        assert '"My tenant broke a window"' in file.read_text()
        page.click("#routes-undo")
        expect(page.locator("#routes-said")).to_have_text("Undone.")
        assert file.read_text() == TEXT
        page.fill("#routes-text", TEXT.replace("# ours", "# edited"))
        page.click("#routes-form button[type=submit]")
        expect(page.locator("#routes-said")).to_have_text("Saved and loaded.")
        assert file.read_text().startswith("# edited")
        page.goto("about:blank")  # before the server ends: a lost connection is a complaint


def test_on_a_phone_nothing_is_wider_than_the_screen(visit, file, journal):  # noqa: F811
    with serving_routes(file, journal) as server, visit.closes():
        server.chat(model="auto")
        page = visit(width=390, server=server).page
        expect(page.locator("#decisions select").first).to_be_attached()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.goto("about:blank")


def test_without_a_routes_file_the_page_shows_no_routes(visit):
    page = visit().page
    expect(page.locator("#routes-section")).to_be_hidden()
    expect(page.locator("#kind-head")).to_be_hidden()
