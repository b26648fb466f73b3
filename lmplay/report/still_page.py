"""Write a small HTML page of a comparison: the report with its curves as pictures, without scripts."""

import base64
import re

from lmplay.errors import UserError
from lmplay.report.canvas import as_bytes
from lmplay.report.figure import figure_of
from lmplay.report.overlay import overlay_runs
from lmplay.report.page import Report, parts_of, template
from lmplay.report.page_table import escape
from lmplay.report.plot_options import PlotOptions

SHOWN = ("loss", "diff_loss")  # pictures
# A browser runs nothing and fetches nothing for this page, whatever it holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """.plot { display: none; } .beside { display: block; }
.picture { display: block; width: 100%; max-width: 1100px; background: white; }"""

BODY = """\
<header><h1>{title}</h1><p class="subtitle">{subtitle}</p></header>
<main>
{table}
<div class="remarks">{remarks}</div>
<h2>Curves</h2>
{pictures}
<h2>Code changes</h2>
{experiments}
<h2>Samples</h2>
{samples}
<h2>Settings that differ</h2>
{settings}
<h2>Runs</h2>
{runs}
</main>
<footer>{footer}</footer>"""


def as_still_html(report: Report) -> str:
    """Return the page: one file that opens anywhere."""
    style = re.search(r"<style>(.*?)</style>", template(), re.S)
    parts = parts_of(report) | {"pictures": _pictures(report)}
    body = re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], BODY)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{parts["title"]}</title>\n'
        f"<style>{style[1] if style else ''}\n{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _pictures(report: Report) -> str:
    """Return the curves of all runs and their differences to the baseline's, as images in HTML."""
    runs = [run for group in report.groups for run in group.runs]
    if not runs:
        return '<p class="quiet">There are no runs to draw.</p>'
    try:
        found = overlay_runs(runs, PlotOptions(baseline=str(runs[0].folder), log=False))
    except UserError as error:
        return f'<p class="quiet">{escape(str(error))}</p>'
    shown = {name: found.pictures[name] for name in SHOWN if name in found.pictures}
    return "\n".join(
        f'<img class="picture" alt="{escape(picture.title)}" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(as_bytes(figure_of(picture), "svg")).decode()}">'
        for picture in shown.values()
    )
