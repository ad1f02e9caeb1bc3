"""Sphinx settings of the documentation site; `make docs` builds it, offline and with warnings as errors."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "prime_xmc"
author = "the prime_xmc developers"
project_copyright = "the prime_xmc developers, Apache-2.0"
release = version = installed_version("prime_xmc")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "config_reference",
    "plain_docstrings",
]
source_suffix = {".md": "markdown"}
# The summary of a report is a part of another page.
exclude_patterns = ["_build", "**/index.html", "**/summary.md"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
# The ids of MyST's headings are those of GitHub, so that a link to a heading works in both places.
suppress_warnings = ["myst.xref_ambiguous"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True
maximum_signature_line_length = 90
python_use_unqualified_type_names = True

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"prime_xmc {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "sidebar_hide_name": False,
    "light_css_variables": {"color-brand-primary": "#1f5fbf", "color-brand-content": "#1f5fbf"},
    "dark_css_variables": {"color-brand-primary": "#8ab4f8", "color-brand-content": "#8ab4f8"},
}
