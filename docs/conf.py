"""Settings of the documentation site, which `make docs` builds."""

import os
import pydoc
import re
from pathlib import Path

from sphinx.util.nodes import make_refnode

# Read when Triton is imported: without a GPU its kernels run in the interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")
# The tutorial inherits it: idle threads that spin would slow down its small batches.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jetzoo  # noqa: E402 - after the environment
from jetzoo import repository  # noqa: E402

project = "jetzoo"
author = "the jetzoo authors"
project_copyright = author
version = release = jetzoo.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "numpydoc"]
exclude_patterns = ["_build"]

# Pages are written in MyST Markdown.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# The tutorial is run anew each time that its page is built; an error in it fails the build.
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_show_tb = True
nb_merge_streams = True

# Docstrings are in NumPy style; types are words and shapes rather than links.
autodoc_default_options = {"members": True, "member-order": "bysource", "ignore-module-all": True}
autodoc_inherit_docstrings = False
autodoc_typehints = "none"
numpydoc_show_class_members = False

# A reference without a target is an error, but for other projects, and for attributes, which
# numpydoc describes with their class.
nitpicky = True
nitpick_ignore_regex = [
    ("py:attr", ".*"),
    ("py:.*", r"(torch|numpy|awkward|weaver|matplotlib|rich|linformer|reformer_pytorch)\..*"),
]

html_theme = "furo"
html_title = f"jetzoo {version}"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5f99", "color-brand-content": "#1f5f99"},
}

PACKAGE = Path(jetzoo.__file__).parent
NOT_IN_API = ("__main__", "cli")


def write_api_pages(app):
    """Write ``api/NAME.rst`` for every module and package of jetzoo, with all of its modules.

    ``api/index.rst`` puts them in order; a page that it does not name is an error.
    """
    pages = {}
    files = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]
    networks = (repository.home() / "networks").glob("*.py")
    files += [Path("networks") / path.name for path in sorted(networks)]
    for path in files:
        parts = path.with_suffix("").parts
        # Networks such as ParT-FineTune have no name that autodoc takes.
        if path.parts[0] == "share" or parts[-1] in NOT_IN_API or "-" in parts[-1]:
            continue
        name = ".".join(("jetzoo", *parts)).removesuffix(".__init__")
        if name != "jetzoo":
            pages.setdefault(parts[0], []).append(name)
    folder = Path(app.srcdir) / "api"
    for page, names in pages.items():
        text = heading(f"jetzoo.{page}", "=")
        for name in names:
            text += ("" if name == f"jetzoo.{page}" else heading(name, "-")) + automodule(name)
        path = folder / f"{page}.rst"
        if not path.is_file() or path.read_text() != text:  # an unchanged page is not read again
            path.write_text(text)
    for path in folder.glob("*.rst"):
        if path.stem not in pages and path.stem != "index":
            path.unlink()


def heading(text, mark):
    """A heading in reST."""
    return f"{text}\n{mark * len(text)}\n\n"


def automodule(name):
    """The directive that documents a module."""
    return f".. automodule:: {name}\n\n"


def escape_bars(app, what, name, obj, options, lines):
    """Escape the bars of ``|eta|`` in docstrings, which reST would take for substitutions."""
    for i, line in enumerate(lines):
        parts = re.split("(``.*?``)", line)
        parts[::2] = [re.sub(r"(?<!\\)\|(?=\S)([^|]*\S)\|", r"\\|\1\\|", x) for x in parts[::2]]
        lines[i] = "".join(parts)


def find_reference(app, env, node, contnode):
    """Resolve a name that Sphinx does not find as a reader does.

    It may be imported by the module of the docstring, be exported by a package under a shorter
    name, be a constant, which is described with its module, or stand in a module next door.
    """
    module, target = node.get("py:module") or "", node["reftarget"]
    objects = env.domains.python_domain.objects
    package = module.rpartition(".")[0]
    scopes = (f"{module}.{node.get('py:class')}.", f"{module}.", f"{package}.", "")
    candidates = []
    for name in (f"{scope}{target}" for scope in scopes):
        value = pydoc.locate(name) if name.startswith("jetzoo.") else None
        if value is not None:
            defined = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
            candidates += [defined, name, name.rpartition(".")[0]]
    if module:
        package = ".".join(module.split(".")[:2])
        candidates += (x for x in objects if x.startswith(package) and x.endswith(f".{target}"))
    found = next((x for x in candidates if x in objects), None)
    if found is None:
        return None
    entry = objects[found]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, found)


def setup(app):
    """Register the above with Sphinx."""
    app.connect("builder-inited", write_api_pages, priority=400)  # before autosummary reads them
    app.connect("autodoc-process-docstring", escape_bars, priority=400)  # before numpydoc
    app.connect("missing-reference", find_reference)
