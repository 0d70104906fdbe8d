"""Reading a page as people do, and what they would rather not read."""

from __future__ import annotations

from markdown_it import MarkdownIt

from tests.service.pages.browser import Page

CLASSES = ("memorized", "spurious", "generalized")
#: Prompts, captions and names of people who try things.
HOSTILE = (
    '</script><script id="injected">injected = 1</script>',
    '</template><img id="injected" src="https://example.org/x.png" onerror="injected = 1">',
    "\u202edesrever \u2066\u2069\u2069 end\x1b[31m\u2028 line",
    "{{ 7 * 7 }} {% raw %} | `code`` <b id=injected> @someone #1 [a](javascript:injected=1) https://example.org ``",
    "عربي then " + "unbroken" * 60,
)
#: Characters of theirs that nobody sees.
UNSEEN = set("\u202e\u2066\u2069\u2028\x1b")
ENTER = ("Enter", 13, "\r")
#: What an opened card says, as soon as it is there.
LOADED = """new Promise(tell => {
  const look = () => {
    const text = document.querySelector(".card").innerText.trim();
    text.startsWith("loading") ? setTimeout(look, 5) : tell(text);
  };
  look();
})"""
COUNT_PRINTED = "addEventListener('beforeprint', () => { printed = document.querySelectorAll('.open').length })"


def code_in(markdown: str) -> set[str]:
    """What stands in code spans of a Markdown text in which nothing else is more than text, lists and tables."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown)
    inline = [child for token in tokens for child in token.children or []]
    assert {child.type for child in inline} <= {"text", "code_inline", "strong_open", "strong_close", "softbreak"}
    return {child.content for child in inline if child.type == "code_inline"}


def column(tab: Page, name: str) -> list[str]:
    """What stands in a column of the table."""
    place = 1 + tab.evaluate("[...document.querySelectorAll('th[data-column]')].map(one => one.dataset.column)").index(
        name
    )
    return tab.texts(f"#prompts tbody tr:not(.card) td:nth-child({place})")


def press(tab: Page, selector: str) -> None:
    """Give an element the focus and press Enter."""
    tab.evaluate(f"document.querySelector({selector!r}).focus()")
    tab.press(*ENTER)


def choose(tab: Page, selector: str, label: str) -> None:
    """Choose an option of a list by what it says."""
    tab.evaluate(
        f"(() => {{ const list = document.querySelector({selector!r});"
        f"list.selectedIndex = [...list.options].findIndex(one => one.text.includes({label!r}));"
        "list.dispatchEvent(new Event('input')); })()"
    )
