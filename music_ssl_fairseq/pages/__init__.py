"""Write self-contained HTML pages: text, tables, figures and sound in one file, no network needed.

`page` has the skeleton that all pages share (`page.html`, `page.css`, `page.js`), `figures` draws
with matplotlib, `flat` lays vectors out on a plane.
"""
