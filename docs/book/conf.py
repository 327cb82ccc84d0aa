"""The course as a static site, site/html: `make book`.

Sphinx with MyST-NB and Jupyter Book's theme makes the pages of Jupyter Book 1 from four packages;
Jupyter Book itself would pin older versions of them, and version 2 is a Node program that downloads
its theme. The source folder is the root of the repository, so links between notebooks, documents
and cards work as they do there. Nothing is executed, and the pages request nothing from elsewhere.
"""

import importlib.util
import re
import shutil
from pathlib import Path

from minflextok.course.colab import COLAB, REPOSITORY

ROOT = Path(__file__).parents[2]
PARTS = {  # of the table of contents, in order; the landing page is notebooks/README.md
    "The course": ["notebooks/*.ipynb"],
    "The package": ["README.md", "docs/*.md", "CONTRIBUTING.md"],
    "Weights and measurements": ["data/README.md", "data/*/**/README.md", "benchmarks/*.md"],
    "Solutions": ["notebooks/solutions/*.ipynb"],
}
CONTENTS = {
    part: [p.relative_to(ROOT).as_posix() for glob in globs for p in sorted(ROOT.glob(glob))]
    for part, globs in PARTS.items()
}

project = html_title = "minflextok: the course"
root_doc = "notebooks/README"
extensions = ["myst_nb"]
include_patterns = [f"{root_doc}.md", *(file for files in CONTENTS.values() for file in files)]
exclude_patterns = [".*", "site", "outputs", "runs", "minflextok", "tests"]  # folders not to search

nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # tables, in outputs too
nb_code_prompt_show, nb_code_prompt_hide = "Show the {type}", "Hide the {type}"
# A slider moves nothing without a kernel; its text says where to run it.
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_ipywidgets_js: dict = {}
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4

html_theme = "sphinx_book_theme"
COLAB_BUTTON = {
    "repository_url": f"https://github.com/{REPOSITORY}",
    "repository_branch": "main",
    "launch_buttons": {"colab_url": COLAB},
}
html_theme_options = {
    **(COLAB_BUTTON if REPOSITORY else {}),
    "use_download_button": False,
    "navbar_persistent": [],  # the sidebar has a search field
}
html_context = {"default_mode": "auto"}
html_static_path, html_css_files = ["static"], ["book.css"]
html_copy_source = False
html_use_index = False
html_show_copyright = False
mathjax_path = "mathjax/tex-chtml-full.js"

EXPLORER = "docs/explorer"
NOTE = f"""
```{{note}}
Without an installation: on <a href="../{EXPLORER}/index.html">the explorer page</a> you choose
the tokens of an image and see what they decode to.
```
"""


def contents() -> str:
    """The landing page's tables of contents, shown in the sidebar."""
    lines: list[str] = []
    for part, files in CONTENTS.items():
        lines += ["```{toctree}", ":hidden:", f":caption: {part}", "", *(f"/{f}" for f in files)]
        lines += ["```", ""]
    return "\n" + "\n".join(lines)


def adapt(app, docname: str, source: list[str]) -> None:
    """What differs between the repository and the site, in the text of a file before it is read."""
    text = source[0]
    if docname == root_doc:
        title, rest = text.split("\n", 1)
        text = title + "\n" + NOTE + rest + contents()
    if docname.startswith("notebooks/solutions/"):
        text = text.replace("# ", "# Solutions · ", 1)
    text = text.replace("](solutions)", "](solutions/00_quickstart.ipynb)")
    text = re.sub(r"\]\(#[^)\s]+\)", lambda link: link[0].lower(), text)  # as ids are, here
    # MyST would offer other pages for download.
    source[0] = re.sub(r"\[([^\]]+)\]\(([^)\s:]+\.html)\)", r"<a href='\2'>\1</a>", text)


def leave_out_of_search(app, env) -> None:
    """The search finds no solutions."""
    for docname in env.found_docs:
        if docname.startswith("notebooks/solutions/"):
            env.metadata[docname]["nosearch"] = True


def copy_files(app, error) -> None:
    """The explorer, MathJax, and a first page that leads to the landing page."""
    if error:
        return
    out = Path(app.outdir)
    shutil.copytree(ROOT / EXPLORER, out / EXPLORER, dirs_exist_ok=True)
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    mathjax, fonts = Path(package.origin).parent / "static/mathjax", "output/chtml/fonts/woff-v2"
    target = out / "_static" / "mathjax"
    shutil.copytree(mathjax / fonts, target / fonts, dirs_exist_ok=True)
    shutil.copy(mathjax / Path(mathjax_path).name, target)
    refresh = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">'
    link = f'<a href="{root_doc}.html">{project}</a>'
    (out / "index.html").write_text(f"<!doctype html>{refresh}{link}\n")


def setup(app) -> None:
    app.connect("source-read", adapt)
    app.connect("env-updated", leave_out_of_search)
    app.connect("build-finished", copy_files)
