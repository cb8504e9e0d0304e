"""What the page offers to copy into clients: the document's texts, with this server's address and names."""

import ast
import re
import shlex
import tomllib

import pytest
import yaml

from tests.http.server import running_server
from tests.page.conftest import engine

CLIENTS = ["openai (Python)", "anthropic (Python)", "Open WebUI", "Continue", "Claude Code", "Codex"]


@pytest.fixture(scope="module")
def documented(root):
    """Client -> its text in the document."""
    page = (root / "docs/clients.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^## (.+?)\n.*?```\w+\n(.*?)\n```", page, re.DOTALL | re.MULTILINE))


def test_every_client_has_the_documents_text_with_this_address_and_the_chosen_model(visit, served, documented):
    page = visit().page
    assert list(documented) == CLIENTS == page.locator("#client option").all_inner_texts()
    names = page.locator("#client-model option").all_inner_texts()
    assert names[0] == "auto"
    assert set(names) > {"coder", "linguist", "big"}
    for name, text in documented.items():
        page.select_option("#client", name)
        for model in ("auto", "coder"):
            page.select_option("#client-model", model)
            here = text.replace("http://127.0.0.1:8080", f"http://127.0.0.1:{served.port}")
            assert page.inner_text("#client-text") == re.sub(r"\bauto\b", model, here)


def test_a_name_is_only_a_name_in_whatever_reads_the_text(visit):
    """An objective's name comes from a router's file, which others may have made."""
    page = visit().page
    hostile = "auto:x'$(touch /tmp/no)\"; #: [\\n`"
    written = "async (model) => { const { CLIENTS } = await import('/page/clients.js');"
    written += (
        " return Object.fromEntries(Object.entries(CLIENTS).map(([name, { text }]) => [name, text('A', model)])) }"
    )
    texts = page.evaluate(written, hostile)
    told = shlex.split(texts["Claude Code"], comments=True)
    assert [one.partition("=")[2] for one in told if "MODEL" in one] == [hostile, hostile]
    for name, key in (("Continue", "name"), ("Continue", "model")):
        assert yaml.safe_load(texts[name])["models"][0][key] == hostile
    assert tomllib.loads(texts["Codex"])["model"] == hostile
    for name in ("openai (Python)", "anthropic (Python)"):
        said = [one.value for one in ast.walk(ast.parse(texts[name])) if isinstance(one, ast.Constant)]
        assert hostile in said


def test_a_text_is_copied(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"]).page
    page.select_option("#client", "Codex")
    page.click("#client-copy")
    page.wait_for_selector("#client-copied:has-text('Copied.')")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#client-text")


def test_no_text_has_a_key(visit, documented):
    for text in documented.values():
        assert "YOUR_KEY" in text or "COE_KEY" in text
    with running_server({"coder": engine("coder")}) as server, visit.closes():
        page = visit(server=server).page
        assert "YOUR_KEY" in page.inner_text("#client-text")
        page.close()


def test_the_documents_program_for_openai_prints_an_answer(documented, served, capsys):
    text = documented["openai (Python)"].replace("127.0.0.1:8080", f"127.0.0.1:{served.port}")
    assert text.startswith("from openai import OpenAI")
    exec(compile(text, "docs/clients.md", "exec"), {})
    assert "answers: Hello" in capsys.readouterr().out
