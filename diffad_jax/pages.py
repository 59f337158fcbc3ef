"""HTML pages that open without a network, and what stands on them: tables, figures, facts."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

# Nothing but inline styles and data: pictures may load, whatever the strings in the report hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light; --ink: #1f2937; --muted: #6b7280; --line: #e5e7eb; --accent: #0072b2; --tint: #e8f2f9; }
* { box-sizing: border-box; }
body { margin: 0; background: #f3f4f6; color: var(--ink); line-height: 1.5;
  font-family: system-ui, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.25rem; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; } h2 { margin: 0 0 .75rem; font-size: 1.2rem; }
p { margin: .5rem 0; color: var(--muted); font-size: .9rem; }
section, details { margin: 1rem 0; padding: 1.25rem; background: #fff; border: 1px solid var(--line);
  border-radius: 10px; }
summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: .75rem 1.5rem; margin: 1rem 0; }
dt { color: var(--muted); font-size: .8rem; } dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .75rem 0; }
th, td { padding: .4rem .75rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; font-weight: 500; position: sticky; left: 0; background: #fff; }
thead th, thead th:first-child { color: var(--muted); font-size: .85rem; font-weight: 600; }
.methods tbody tr:first-child > *, .settings :is(td, th):nth-child(2), .groups :is(td, th):nth-child(3) {
  background: var(--tint); }
.methods tbody tr:first-child th, .settings thead th:nth-child(2), .groups thead th:nth-child(3) {
  color: var(--accent); font-weight: 700; }
.settings tbody tr:last-child :is(td, th) { border-top: 2px solid var(--ink); }
.settings tbody tr:last-child th, .best { font-weight: 700; }
small { color: var(--muted); font-weight: 400; } td > small { display: block; line-height: 1.2; }
a { color: inherit; text-decoration-color: var(--accent); text-underline-offset: 3px; }
figure { margin: 1rem 0 0; } img { display: block; max-width: 100%; height: auto; }
.scroll, .pictures { overflow-x: auto; max-width: 100%; } .pictures img { min-width: 800px; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 1rem; }
section details { padding: 0; border: 0; }
@media (max-width: 600px) { main { padding: 1rem .5rem; } section, details { padding: .75rem; }
  dl { grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)); } }
.tables { display: flex; flex-wrap: wrap; column-gap: 2rem; }
.config { width: 100%; font: .85rem ui-monospace, "DejaVu Sans Mono", monospace; }
.config :is(th, td) { padding: .15rem .5rem; text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def page(title: str, body: str, style: str = "") -> str:
    """A whole page that opens without a network: `title` is text, `body` HTML, `style` CSS after that of all pages."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def table_html(css: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str], Sequence[bool]]]) -> str:
    """Rows of (name, cells, which cells are best); `head` is text, names and cells are HTML."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = ""
    for name, cells, best in rows:
        row = "".join(f'<td class="best">{c}</td>' if b else f"<td>{c}</td>" for c, b in zip(cells, best, strict=True))
        body += f'<tr><th scope="row">{name}</th>{row}</tr>\n'
    table = f'<table class="{css}"><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def figure_html(title: str, image: bytes, css: str = "", kind: str = "png") -> str:
    """The bytes of an image file as HTML, held in the page itself; `title` is the text for those who cannot see it."""
    source = base64.b64encode(image).decode()
    return f'<figure class="{css}"><img alt="{escape(title)}" src="data:image/{kind};base64,{source}"></figure>'


def facts_html(facts: Mapping[str, str | float]) -> str:
    """Names and values, as text, as an HTML list."""
    pairs = ((key, f"{value:.6g}" if isinstance(value, float) else str(value)) for key, value in facts.items())
    items = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in pairs)
    return f"<dl>{items}</dl>" if items else ""
