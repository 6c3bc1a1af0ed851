"""How the documentation is built."""

from typing import Any

from pygments.lexers.special import TextLexer

import mpworker

project = "mpworker"
author = "The mpworker maintainers"
project_copyright = "2026, The mpworker maintainers"
version = release = mpworker.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
# A reference to a name of our own that does not resolve is an error. Others' names resolve only against inventories
# fetched from the network, which the build does without. A type variable is nothing to look up, and what only type
# checkers read (the keys of **options) is named in the text.
nitpick_ignore_regex = [("py:.*", r"(?!mpworker).*"), ("py:class", r"mpworker\.\w+\.([A-Z]|(Pool|Size|Task)Options)")]

html_theme = "furo"
html_title = f"mpworker {release}"


def resolve_public_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Types name the module that defines a class, the reference the package that users import it from."""
    target = node.get("reftarget", "")
    name = target.rpartition(".")[2]
    if not target.startswith("mpworker.") or name not in mpworker.__all__:
        return None
    python = env.get_domain("py")
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", f"mpworker.{name}", node, contnode)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.add_lexer("mermaid", TextLexer)  # the diagrams are drawn where the sources are shown, and are text here
    app.connect("missing-reference", resolve_public_name)
