"""Pages link to files of the repository (``../mmcfmask/…``), as on GitHub. On the site these files are pages too."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r'(?<=\]\()(?![a-z]+:)([^)#\s]+)')  # the target of a relative link, without its anchor
LANGUAGES = {'.py': 'python', '.yaml': 'yaml', '.yml': 'yaml', '.sh': 'bash'}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside docs/ that a page links to, and for the files that those link to."""
    todo = [
        path for file in files.documentation_pages() for path in linked(file.content_string, f'docs/{file.src_uri}')
    ]
    done = set()
    while todo:
        path = todo.pop()
        if path in done or path.startswith('docs/'):
            continue
        done.add(path)
        content = render(path)
        files.append(File.generated(config, find_page(path), content=content))
        todo += linked(content, path) if is_prose(path) else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links at the pages of the site."""
    uri = page.file.src_uri
    path = find_source(uri) if uri.startswith('source/') else f'docs/{uri}'
    if not is_prose(path):
        return markdown
    folder = posixpath.dirname(uri) or '.'
    return LINK.sub(lambda match: posixpath.relpath(find_page(resolve(match[1], path)), folder), markdown)


def linked(markdown: str, path: str) -> list[str]:
    """Paths in the repository that a file links to, outside docs/."""
    targets = (resolve(target, path) for target in LINK.findall(markdown))
    return [target for target in targets if not target.startswith('docs/') and (ROOT / target).exists()]


def resolve(target: str, path: str) -> str:
    """A relative link of the file ``path``, as a path in the repository."""
    folder = path if (ROOT / path).is_dir() else posixpath.dirname(path)
    return posixpath.normpath(posixpath.join(folder, target))


def find_page(path: str) -> str:
    """The page of the site that shows a path of the repository."""
    if path.startswith('docs/'):
        return path.removeprefix('docs/')
    return f'source/{path}' if path.endswith('.md') else f'source/{path}.md'


def find_source(uri: str) -> str:
    """The path in the repository that a page of ``find_page`` shows."""
    path = uri.removeprefix('source/')
    return path if (ROOT / path).exists() else path.removesuffix('.md')


def is_prose(path: str) -> bool:
    """Whether a path is shown as Markdown, with links, and not as a listing of code."""
    return path.endswith(('.md', '.ipynb')) or (ROOT / path).is_dir()


def render(path: str) -> str:
    """A path of the repository as Markdown: a folder as a list of links, code as a listing."""
    file = ROOT / path
    if file.is_dir():
        children = sorted(child for child in file.iterdir() if not child.name.startswith(('.', '__pycache__')))
        return f'# {path}/\n\n' + '\n'.join(f'- [`{child.name}`]({child.name})' for child in children) + '\n'
    text = file.read_text(encoding='utf-8')
    if path.endswith('.ipynb'):
        return '\n\n'.join(map(cell, json.loads(text)['cells']))
    if is_prose(path):
        return text
    return f'---\nhide: [toc]\n---\n\n# {path}\n\n````{LANGUAGES.get(file.suffix, "text")}\n{text}\n````\n'


def cell(content: dict) -> str:
    """A cell of a notebook as Markdown, without its output."""
    text = ''.join(content['source'])
    return text if content['cell_type'] == 'markdown' else f'```python\n{text}\n```'
