"""What the book adds to its build: no script that calls out, and a text for every figure that is not seen."""

from docutils import nodes


def remove_thebe(app, pagename, templatename, context, doctree):
    """Take away the scripts of sphinx-thebe, which Jupyter Book always adds, twice, so that each page had an error."""
    scripts = context.get("script_files", [])
    scripts[:] = [script for script in scripts if "thebe" not in str(script).lower() + _body(script)]


def _body(script):
    return str(getattr(script, "attributes", {}).get("body", "")).lower()


def describe_images(app, doctree, docname):
    """Give each image without an alternative text the caption of its figure, else the heading above it."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt"):
            image["alt"] = _caption(image) or _heading(image)


def _caption(image):
    figure = image.parent
    while figure is not None and not isinstance(figure, nodes.figure):
        figure = figure.parent
    captions = [] if figure is None else figure.findall(nodes.caption)
    return next((caption.astext() for caption in captions), None)


def _heading(image):
    section = image.parent
    while not isinstance(section, nodes.section | nodes.document):
        section = section.parent
    return next((f"Figure: {title.astext()}" for title in section.findall(nodes.title)), "Figure")


def setup(app):
    app.connect("html-page-context", remove_thebe, priority=900)
    app.connect("doctree-resolved", describe_images)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
