"""Builds the pages of pyterrier_rankdistillm/pt_docs and the notebooks (scripts/docs); PyTerrier's site has its own."""

from typing import Any

import pyterrier as pt
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.inspect import signature, stringify_signature

from pyterrier_rankdistillm import __version__

project = "pyterrier_rankdistillm"
author = "The pyterrier_rankdistillm contributors"
copyright = author  # noqa: A001  # Sphinx's name
release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "myst_nb"]
nb_execution_mode = "off"  # scripts/notebooks runs them
copybutton_exclude = ".linenos, .gp, .go"  # prompts and outputs
copybutton_selector = "div:not(.highlight-text) > div.highlight > pre"  # what blocks of text hold is output
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
napoleon_google_docstring = True

# References to PyTerrier, pandas and torch would need their inventories from the net; ours must resolve.
nitpick_ignore_regex = [("py:.*", r"(?!pyterrier_rankdistillm\.[A-Z]).*")]

html_theme = "furo"
html_title = f"Rank-DistiLLM {release}"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["wide.css"]


def setup(app: Sphinx) -> None:
    """Transformers are shown with the arguments of their ``__init__``: PyTerrier's ``__new__`` takes any."""

    def of_init(_app: Sphinx, what: str, _name: str, found: Any, *_: Any) -> tuple[str, None] | None:
        if what != "class" or not issubclass(found, pt.Transformer):
            return None
        return stringify_signature(signature(found.__init__, bound_method=True), show_annotation=False), None

    def no_mail(_app: Sphinx, doctree: nodes.document) -> None:
        """``nDCG@10`` is a measure, and no address to write to."""
        for node in list(doctree.findall(nodes.reference)):
            if str(node.get("refuri", "")).startswith("mailto:"):
                node.replace_self(nodes.Text(node.astext()))

    app.connect("autodoc-process-signature", of_init)
    app.connect("doctree-read", no_mail)
