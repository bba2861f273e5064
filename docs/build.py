"""Build the documentation as a static site that needs no server: build/docs/index.html.

  pip install -e '.[dev]' && python docs/build.py

The API reference comes from docstrings and signatures (pdoc), the guides from docs/*.md. A link to
a page that does not exist is an error.
"""

import pathlib
import pkgutil
import re
import shutil

import markdown2
import markupsafe
import pdoc
import pdoc.render

import transformer

ROOT = pathlib.Path(__file__).parents[1]
OUTPUT = ROOT / 'build' / 'docs'
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: auto; padding: 1rem }}
pre, code {{ font: 14px/1.4 ui-monospace, monospace; background: #f3f4f6 }}
pre {{ padding: .8rem; overflow-x: auto }}
td, th {{ border: 1px solid #d5d8dd; padding: .2rem .6rem; text-align: left }}
table {{ border-collapse: collapse }}
</style></head><body>
<p><a href="index.html">Contents</a></p>
{body}
</body></html>
"""
# Where a type is defined is of no interest in a signature; its shape is. In highlighted HTML.
_PLACES = re.compile(
  '|'.join(
    r'<span class="o">\.</span>'.join(f'<span class="n">{part}</span>' for part in place.split('.'))
    + r'<span class="o">\.</span>'
    for place in ('jaxtyping', 'jaxlib._jax', 'jax.jaxlib._jax', 'numpy', 'typing')
  )
)


def short_signature(signature: markupsafe.Markup) -> markupsafe.Markup:
  """Return a signature with `Float[Array, 'B T']` for `jaxtyping.Float[jaxlib._jax.Array, ...]`."""
  return markupsafe.Markup(_PLACES.sub('', signature))


def build_reference(output: pathlib.Path):
  """Write a page for every module; that of the package shows all that it exports."""
  packages = {module.name for module in pkgutil.iter_modules(transformer.__path__)}
  names = packages | {name for name in dir(transformer) if not name.startswith('_')}
  transformer.__all__ = sorted(names - {'Any', 'TYPE_CHECKING'})
  pdoc.render.configure(docformat='google', footer_text=f'version {transformer.__version__}')
  filters = pdoc.render.env.filters
  format_signature = filters['format_signature']
  filters['format_signature'] = lambda *args, **kwargs: short_signature(
    format_signature(*args, **kwargs)
  )
  pdoc.pdoc('transformer', output_directory=output)


def build_guides(output: pathlib.Path):
  """Write a page for each docs/*.md, with links to pages instead of Markdown files."""
  for file in sorted((ROOT / 'docs').glob('*.md')):
    text = file.read_text(encoding='utf-8')
    body = markdown2.markdown(text, extras=['fenced-code-blocks', 'tables', 'header-ids'])
    body = re.sub(r'href="(\w+)\.md', r'href="\1.html', body)
    title = text.splitlines()[0].lstrip('# ')
    (output / f'{file.stem}.html').write_text(PAGE.format(title=title, body=body), encoding='utf-8')
  for picture in sorted((ROOT / 'docs').glob('*.png')):
    shutil.copy(picture, output)


def dead_links(output: pathlib.Path) -> list[str]:
  """Return the relative links whose page does not exist."""
  dead = []
  for page in output.rglob('*.html'):
    for link in re.findall(r'<\w+ [^<>]*?(?:href|src)="([^"#]+)', page.read_text(encoding='utf-8')):
      if not re.match(r'https?:|data:|\$', link) and not (page.parent / link).exists():
        dead.append(f'{page.relative_to(output)}: {link}')
  return dead


def main():
  shutil.rmtree(OUTPUT, ignore_errors=True)
  OUTPUT.mkdir(parents=True)
  build_reference(OUTPUT / 'reference')
  build_guides(OUTPUT)
  if dead := dead_links(OUTPUT):
    raise SystemExit('dead links:\n' + '\n'.join(dead))
  print(f'{len(list(OUTPUT.rglob("*.html")))} pages: {OUTPUT / "index.html"}')


if __name__ == '__main__':
  main()
