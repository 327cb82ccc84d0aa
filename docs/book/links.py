"""Check all links between the pages of a built site: python docs/book/links.py site/html

Sphinx reports what it cannot resolve in a text; this reads what the browser will get, so that
links in HTML, images, scripts and downloads count too. Links to other sites are not followed.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The ids of a page, and what it links to or loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids, self.links = {"", "top"}, set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.add(value)


def dead_links(site: Path) -> list[str]:
    """One line for each link of a page in `site` whose file or anchor does not exist."""
    paths = [p for p in sorted(site.resolve().rglob("*.html")) if "_static" not in p.parts]
    pages = {path: Page(path) for path in paths}
    dead = []
    for path, page in pages.items():
        for link in sorted(page.links):
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            there = (path.parent / unquote(url.path)).resolve() if url.path else path
            anchors = pages[there].ids if there in pages else {""}
            if not there.is_file() or unquote(url.fragment) not in anchors:
                dead.append(f"{path.relative_to(site.resolve())}: {link}")
    return dead


if __name__ == "__main__":
    found = dead_links(Path(sys.argv[1]))
    print("\n".join(found) or "no dead link")
    sys.exit(bool(found))
