"""What the book adds to its build: no script that calls out, texts for figures, links to the package's names."""

import base64
import gzip
import json
import os
import re
import shutil
import sys
from pathlib import Path

import itables
import plotly
from docutils import nodes
from pydantic.dataclasses import is_pydantic_dataclass
from sphinx.util.nodes import make_refnode

from egraff_utils import paths, schema

CSV, PLOTLY = "application/vnd.egraff.points+json", "application/vnd.plotly.v1+json"  # as in egraff_utils.report.drawn
SORTABLE = 'class="dataframe sortable"'


def link_repository(app, config):
    """Add buttons for source, issues, edits and Binder to every page, if the book is built for a repository.

    Its address is that of :func:`egraff_utils.paths.repository`.
    """
    if not (address := paths.repository()):
        return
    buttons = dict.fromkeys(("use_repository_button", "use_issues_button", "use_edit_page_button"), True)
    config.html_theme_options |= buttons | {
        "repository_url": address,
        "repository_branch": "main",
        "launch_buttons": {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"},
    }


def remove_thebe(app, pagename, templatename, context, doctree):
    """Take away the scripts of sphinx-thebe, which Jupyter Book always adds, twice, so that each page had an error."""
    scripts = context.get("script_files", [])
    scripts[:] = [script for script in scripts if "thebe" not in str(script).lower() + _body(script)]


def _body(script):
    return str(getattr(script, "attributes", {}).get("body", "")).lower()


def describe_images(app, doctree, docname):
    """Give each image without an alternative text the caption of its figure, else the paragraph below it."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt"):
            image["alt"] = _caption(image) or _below(image)


def _caption(image):
    figure = image.parent
    while figure is not None and not isinstance(figure, nodes.figure):
        figure = figure.parent
    captions = [] if figure is None else figure.findall(nodes.caption)
    return next((caption.astext() for caption in captions), None)


def _below(image):
    """Text of the next paragraph of the same section, which may stand in another column of a grid."""
    following = image.findall(nodes.paragraph, include_self=False, siblings=True, ascend=True)
    texts = (part.astext() for part in following if _section(part) is _section(image))
    return next(texts, "Figure")


def _section(node):
    while not isinstance(node, nodes.section | nodes.document):
        node = node.parent
    return node


def add_points(app, doctree, docname):
    """Add the points of each figure of a notebook as a file, and the interactive plot that its output holds."""
    page = Path(app.env.doc2path(docname))
    if app.builder.format != "html" or page.suffix != ".ipynb":
        return
    figures = {name: figure for figure in doctree.findall(nodes.figure) for name in figure["names"]}
    top, scripts = "../" * docname.count("/"), True
    for name, data in _outputs(page):
        if name in figures and CSV in data:
            figures[name] += nodes.raw("", _points(app, name, data[CSV], top), format="html")
        if name in figures and PLOTLY in data:
            text = _plot(data[PLOTLY]) + _scripts(top, "plotly", "interactive") * scripts
            figures[name].insert(1, nodes.raw("", text, format="html"))
            scripts = False


def _outputs(page):
    """Names of the figures of a notebook, and their outputs by type."""
    for cell in json.loads(page.read_text())["cells"]:
        name = cell["metadata"].get("mystnb", {}).get("figure", {}).get("name")
        for output in cell.get("outputs", []) if name else []:
            yield name.lower(), output.get("data", {})


def _points(app, name, data, top):
    file = Path(app.outdir, "_static", "data", f"{name}.csv")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.decompress(base64.b64decode(data["gzip"])))
    note = f" (every {data['every']}th point of long lines)" if data["every"] > 2 else ""
    return f'<p class="points"><a download href="{top}_static/data/{file.name}">{file.name}</a>{note}</p>'


def _plot(plot):
    text = json.dumps(plot).replace("<", "\\u003c")  # so that no text can close the script element
    return f'<div class="interactive" hidden><script type="application/json">{text}</script></div>'


def _scripts(top, *names):
    return "".join(f'<script defer src="{top}_static/{name}.js"></script>' for name in names)


def add_sorting(app, doctree, docname):
    """Let a reader sort and filter the tables of a page that are of class sortable."""
    if any(SORTABLE in raw.astext() for raw in doctree.findall(nodes.raw)):
        doctree += nodes.raw("", _scripts("../" * docname.count("/"), "datatables", "sortable"), format="html")


def link_pages(app, doctree, docname):
    """Let links of a table to notebooks lead to the pages that are made of them."""
    for raw in doctree.findall(nodes.raw):
        if '.ipynb"' in (text := raw.astext()):
            raw.children = [nodes.Text(text.replace('.ipynb"', '.html"'))]


def add_programs(app, error):
    """Give the book plotly's program, and that of DataTables, as a script that also runs without a server."""
    if app.builder.format == "html" and not error:
        static, module = Path(app.outdir, "_static"), Path(itables.__file__).with_name("html") / "dt_bundle.js"
        shutil.copy(Path(plotly.__file__).with_name("package_data") / "plotly.min.js", static / "plotly.js")
        blob = f"new Blob([{json.dumps(module.read_text())}], {{type: 'text/javascript'}})"
        (static / "datatables.js").write_text(f"const dataTables = import(URL.createObjectURL({blob}));\n")


def explain_terms(app, doctree, docname):
    """Let each link to a term of the glossary show its definition to a mouse that rests on it."""
    for reference in doctree.findall(nodes.reference):
        anchor = reference.get("refid") or reference.get("refuri", "").rpartition("#")[2]
        if anchor.startswith("term-"):
            reference["reftitle"] = _definitions(app.env)[anchor]


def _definitions(env):
    if not hasattr(env, "definitions"):
        items = env.get_doctree("book/glossary").findall(nodes.definition_list_item)
        env.definitions = {
            anchor: _plain(next(item.findall(nodes.definition)))
            for item in items
            for term in item.findall(nodes.term)
            for anchor in term["ids"]
        }
    return env.definitions


def _plain(definition):
    """Text of a definition, without what points elsewhere."""
    return re.sub(r" \([^()]*\b(?:sec|eq)-[^()]*\)", "", " ".join(definition.astext().split()))


def find_name(app, env, node, contnode):
    """Link a name of the package that is not written in full, such as ``records.read``, if only one ends so."""
    if node.get("refdomain") != "py":
        return None
    target, objects = node["reftarget"], env.get_domain("py").objects
    endings = [f".{target}", f".{target.rpartition('.')[2]}"] if "egraff_utils" in target else [f".{target}"]
    for ending in endings:
        found = {name: entry for name, entry in objects.items() if name.endswith(ending) and not entry.aliased}
        if len(found) == 1:
            ((name, entry),) = found.items()
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)
    return None


def list_keys(app, what, name, obj, options, lines):
    """List the keys of what is read from a file with their types in words; pydantic's are for programs."""
    if what == "class" and is_pydantic_dataclass(obj):
        for key, kind, default, meaning in schema.keys(obj):
            words = ", ".join(filter(None, [kind, default])).replace("`", "``")
            lines += ["", f"``{key}`` : {words}", *(f"    {line}" for line in meaning.splitlines())]


def leave_out_types(app, what, name, obj, options, signature, returned):
    """Leave out the signature of what is read from a file, since its keys are listed."""
    return ("(**keys)", None) if what == "class" and is_pydantic_dataclass(obj) else None


def leave_out_fields(app, what, name, obj, skip, options):
    """Leave out the fields that `list_keys` lists."""
    place = app.env.temp_data
    owner = getattr(sys.modules.get(place.get("autodoc:module")), place.get("autodoc:class") or "", None)
    return True if is_pydantic_dataclass(owner) and name in owner.__dataclass_fields__ else None


def setup(app):
    app.connect("config-inited", link_repository, priority=400)
    app.connect("html-page-context", remove_thebe, priority=900)
    app.connect("doctree-resolved", describe_images)
    app.connect("doctree-resolved", explain_terms)
    app.connect("doctree-resolved", add_points)
    app.connect("doctree-resolved", add_sorting)
    app.connect("doctree-resolved", link_pages)
    app.connect("build-finished", add_programs)
    app.connect("missing-reference", find_name)
    app.connect("autodoc-process-docstring", list_keys)
    app.connect("autodoc-process-signature", leave_out_types)
    app.connect("autodoc-skip-member", leave_out_fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
