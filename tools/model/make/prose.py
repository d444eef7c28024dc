"""Ordinary text: the paragraphs of free documentation packaged by Debian, as JSON lines of
{"text"}.

Reads the HTML pages below /usr/share/doc (or another root) of sqlite3-doc, postgresql-doc-15,
python3.11-doc, python-django-doc, cmake-doc and python-sqlalchemy-doc.
"""
import argparse
import glob
import json
import re
from html.parser import HTMLParser

PAGES = [
    "sqlite3/*.html",
    "sqlite3/c3ref/*.html",
    "postgresql-doc-15/html/*.html",
    "python3.11/html/**/*.html",
    "python-django-doc/html/**/*.html",
    "cmake-data/html/**/*.html",
    "python-sqlalchemy-doc/html/**/*.html",
]
INDEX_PAGE = re.compile(
    r"/(genindex|search|py-modindex|bookindex|keyword_index|doc_|sitemap|_static|_sources|"
    r"changelog|release|requirements|_modules)"
)
PARAGRAPHS = {"p", "li", "dd", "dt"}
SKIPPED = {"script", "style", "pre", "table", "nav", "head", "form", "svg"}


class Paragraphs(HTMLParser):
    """Collects the running text of a page, without tables, code blocks and navigation."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.found, self.parts, self.skipping, self.inside = [], [], 0, False

    def close_paragraph(self):
        text = re.sub(r"\s+", " ", "".join(self.parts)).replace("¶", "").strip()
        if len(text) >= 60 and text[-1] in ".!?:)" and text[0].isalpha():
            self.found.append(text)
        self.parts, self.inside = [], False

    def handle_starttag(self, tag, attrs):
        if tag in SKIPPED:
            self.close_paragraph()
            self.skipping += 1
        elif tag in PARAGRAPHS:
            self.close_paragraph()
            self.inside = True

    def handle_endtag(self, tag):
        if tag in SKIPPED:
            self.skipping = max(self.skipping - 1, 0)
        elif tag in PARAGRAPHS or tag == "div":
            self.close_paragraph()

    def handle_data(self, data):
        if self.inside and not self.skipping:
            self.parts.append(data)


def read_pages(root):
    for pattern in PAGES:
        for path in sorted(glob.glob(f"{root}/{pattern}", recursive=True)):
            if INDEX_PAGE.search(path[len(root) :]):
                continue
            parser = Paragraphs()
            with open(path, encoding="utf-8", errors="replace") as f:
                parser.feed(f.read())
            parser.close_paragraph()
            if parser.found:
                yield "\n\n".join(parser.found)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("out")
    p.add_argument("--root", default="/usr/share/doc")
    a = p.parse_args()
    seen, n_bytes = set(), 0
    with open(a.out, "w", encoding="utf-8") as f:
        for text in read_pages(a.root):
            text = "\n\n".join(t for t in text.split("\n\n") if not (t in seen or seen.add(t)))
            if text:
                n_bytes += len(text.encode())
                f.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    print(f"{n_bytes} bytes of text")


if __name__ == "__main__":
    main()
