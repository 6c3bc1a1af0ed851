"""How the documentation is built."""

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
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
# A reference to a name of our own that does not resolve is an error. Others' names resolve only against inventories
# fetched from the network, which the build does without.
nitpick_ignore_regex = [("py:.*", r"(?!mpworker).*")]

html_theme = "furo"
html_title = f"mpworker {release}"
