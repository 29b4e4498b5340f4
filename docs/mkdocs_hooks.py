"""Build the site from what is in the checkout.

- README.md, CONTRIBUTING.md and CHANGELOG.md become pages without a second copy.
- The entry ``families`` of the navigation stands for all pages in docs/families/.
"""
import re
from pathlib import Path

from mkdocs.structure.files import File

# Pages above docs/ -> their names on the site
ABOVE = {'README.md': 'index.md', 'CONTRIBUTING.md': 'contributing.md',
         'CHANGELOG.md': 'changelog.md'}


def on_config(config):
    """List the pages of the families in the navigation."""
    folder = Path(config.docs_dir) / 'families'
    pages = [f'families/{page.name}' for page in sorted(folder.glob('*.md'))]
    for section in config.nav:
        for entries in section.values():
            if isinstance(entries, list) and 'families' in entries:
                place = entries.index('families')
                entries[place:place + 1] = pages
    return config


def on_files(files, config):
    """Add the pages above docs/, with links that start at docs/."""
    for name, page in ABOVE.items():
        text = Path(config.config_file_path).with_name(name).read_text(encoding='utf-8')
        content = _rename_links(text.replace('](docs/', ']('))
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown, **_):
    """Let links from docs/ to the pages above it lead to the site's."""
    return _rename_links(markdown)


def _rename_links(text):
    """Links to pages above docs/, from any page."""
    def rename(match):
        folders, name = match.groups()
        return f']({folders.removeprefix("../")}{ABOVE[name]}'
    names = '|'.join(map(re.escape, ABOVE))
    return re.sub(rf'\]\(((?:\.\./)*)({names})', rename, text)
