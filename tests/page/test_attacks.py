"""Pages elsewhere, in a real Chromium, try what browsers let them: forms, blind requests, a name pointed here."""

import http.server
import json
import threading

import pytest
from playwright.sync_api import Error

from coe_server.engines.simulated import SimulatedEngine
from coe_server.keys import Key, Keyring, hashed
from tests.http.server import running_server
from tests.http.test_failure import Says
from tests.patience import PATIENCE_SECONDS, until

SECRET = "a-secret"
RING = Keyring((Key(name="boss", sha256=hashed(SECRET), admin=True), Key(name="app", sha256=hashed("an-app"))))
PROGRAM = "<script>document.title='run at '+location.origin;fetch('/admin/experts/bad/unload',{method:'POST'})</script>"
POLYGLOT = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": PROGRAM}}]})
BODY = '{"model":"bad","messages":[{"role":"user","content":"hello"}],"x":"'


class Bad(SimulatedEngine):
    """Every answer is JSON that calls itself a page and holds a program."""

    def __init__(self):
        timing = dict.fromkeys(("start_seconds", "wake_seconds", "sleep_seconds", "ttft_seconds"), 0.0)
        super().__init__("bad", weights_bytes=2**30, tokens_per_second=1000, **timing)
        self.asked = 0

    def send(self, request):
        del request
        self.asked += 1
        return Says(200, POLYGLOT.encode(), headers=(("content-type", "text/html"),)).opened()


@pytest.fixture(scope="module")
def bare():
    bad = Bad()
    with running_server({"bad": bad}) as server:
        server.bad = bad
        yield server


@pytest.fixture(scope="module")
def locked():
    bad = Bad()
    with running_server({"bad": bad}, keyring=RING) as server:
        server.bad = bad
        yield server


@pytest.fixture(scope="module")
def elsewhere():
    """A web server of another port; `pages` are what it serves."""
    pages = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            body = pages.get(self.path, "").encode()
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.pages = pages
    yield server
    server.shutdown()
    thread.join(PATIENCE_SECONDS)
    server.server_close()


@pytest.fixture
def tab(chromium):
    """Opens tabs of one new profile; the profile may remember the operator's password."""
    contexts = []

    def open_tab(**taste):
        context = chromium.new_context(**taste)
        context.set_default_timeout(60_000)
        contexts.append(context)
        return context.new_page()

    yield open_tab
    for context in contexts:
        context.close()


FOREIGN_HOSTS = ["evil.example", "localhost"]  # another site; another port of this machine


def visit(tab, elsewhere, host, page):
    elsewhere.pages["/page"] = page
    tab.goto(f"http://{host}:{elsewhere.server_port}/page")


def open_bare_page(tab, host, server):
    """A page of the server's own port that the server did not make; as if the name was pointed at it since."""
    first = f"http://{host}:{server.port}/first"
    tab.route(first, lambda route: route.fulfill(body="<p>", content_type="text/html"))
    tab.goto(first)


def form(port):
    field = BODY.replace('"', "&quot;")
    target = f"http://127.0.0.1:{port}/v1/chat/completions"
    return (
        f'<form id=f method=post enctype=text/plain action="{target}"><input name="{field}" value="&quot;}}">'
        "</form><script>f.submit()</script>"
    )


def remembers_password(tab, server):
    """The operator has opened the page before."""
    page = tab(http_credentials={"username": "any", "password": SECRET})
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_selector("html[data-ready]")
    return page.context.new_page()


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_form_of_a_page_elsewhere_reaches_no_expert(tab, bare, locked, elsewhere, host):
    for page, server in ((tab(), bare), (remembers_password(tab, locked), locked)):
        asked = server.bad.asked
        visit(page, elsewhere, host, form(server.port))
        page.wait_for_url(f"http://127.0.0.1:{server.port}/v1/chat/completions")
        assert "a page of" in page.inner_text("body")  # the refusal
        assert server.bad.asked == asked
        assert not page.title().startswith("run at")


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
@pytest.mark.parametrize("credentials", ["include", "omit"])
def test_a_blind_request_of_a_page_elsewhere_reaches_no_expert(tab, bare, locked, elsewhere, host, credentials):
    for page, server in ((tab(), bare), (remembers_password(tab, locked), locked)):
        asked = server.bad.asked
        visit(page, elsewhere, host, "")
        page.evaluate(
            "([url, body, credentials]) => "
            "fetch(url, {method: 'POST', mode: 'no-cors', credentials, body}).then(() => 0)",
            [f"http://127.0.0.1:{server.port}/v1/chat/completions", BODY + '"}', credentials],
        )
        page.evaluate(
            "(url) => fetch(url, {method: 'POST', mode: 'no-cors', credentials: 'include'}).then(() => 0)",
            f"http://127.0.0.1:{server.port}/admin/experts/bad/unload",
        )
        assert server.bad.asked == asked


def test_a_name_pointed_at_this_machine_reads_nothing(tab, bare):
    page = tab()
    open_bare_page(page, "evil.example", bare)
    assert page.evaluate("location.origin") == f"http://evil.example:{bare.port}"
    for path in ("/v1/models", "/admin/experts", "/metrics", "/openapi.json"):
        assert page.evaluate("(path) => fetch(path).then((told) => told.status)", path) == 403
    asked = bare.bad.asked
    send = "(body) => fetch('/v1/chat/completions', {method: 'POST', body}).then((told) => told.status)"
    assert page.evaluate(send, BODY + '"}') == 403
    assert bare.bad.asked == asked


def test_an_answer_that_calls_itself_a_page_runs_nowhere(tab, bare):
    """A form of the same origin is let in; what comes back is saved and not shown."""
    page = tab()
    open_bare_page(page, "127.0.0.1", bare)
    asked = bare.bad.asked
    with page.expect_download() as saved:
        page.evaluate(
            """([body]) => {
                const form = Object.assign(document.createElement('form'), {method: 'post', enctype: 'text/plain'});
                form.action = '/v1/chat/completions';
                form.append(Object.assign(document.createElement('input'), {name: body, value: '"}'}));
                document.documentElement.append(form);
                form.submit();
            }""",
            [BODY],
        )
    assert saved.value.path().read_bytes() == POLYGLOT.encode()
    assert bare.bad.asked == asked + 1
    assert not page.title().startswith("run at")


def test_an_app_on_another_port_works_with_a_key(tab, bare, locked, elsewhere):
    ask = """([url, headers, body]) => fetch(url, {method: 'POST', headers, body})
        .then(async (told) => [told.status, told.headers.get('x-coe-expert'), await told.text()])"""
    body = json.dumps({"model": "bad", "messages": [{"role": "user", "content": "hello"}]})
    page = tab()
    visit(page, elsewhere, "localhost", "")
    for server, shown in ((bare, {"authorization": "Bearer any"}), (locked, {"x-api-key": "an-app"})):
        url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
        headers = {"content-type": "application/json", **shown}
        assert page.evaluate(ask, [url, headers, body]) == [200, "bad", POLYGLOT]
        asked = server.bad.asked
        page.evaluate("([url, body]) => fetch(url, {method: 'POST', body}).then(() => 0)", [url, body])
        assert server.bad.asked == asked
    visit(page, elsewhere, "evil.example", "")
    url = f"http://127.0.0.1:{bare.port}/v1/chat/completions"
    with pytest.raises(Error, match="Failed to fetch"):  # without keys it may not even ask
        page.evaluate(ask, [url, {"authorization": "Bearer any"}, body])


def test_a_link_of_a_page_elsewhere_opens_our_page_which_works(tab, bare, elsewhere):
    page = tab()
    visit(page, elsewhere, "evil.example", f'<a id=a href="http://127.0.0.1:{bare.port}/">open</a>')
    page.click("#a")
    page.wait_for_selector("html[data-ready]")
    until(lambda: page.inner_text("#status") == "live")


def test_the_page_asks_with_a_remembered_password_where_browsers_tell_nothing_of_it(tab, locked):
    """Over plain HTTP beyond this machine there is no `Sec-Fetch-Site`, and no `Origin` with a GET."""
    page = tab(http_credentials={"username": "any", "password": SECRET})
    page.goto(f"http://coe.example:{locked.port}/")
    page.wait_for_selector("html[data-ready]")
    options = page.locator("#model option")
    until(lambda: "bad" in options.all_inner_texts())
