"""README.md as the start page of the site, without a second copy of it."""
from pathlib import Path

from mkdocs.structure.files import File


def on_files(files, config):
    """Add README.md, whose links start one folder above docs/."""
    readme = Path(config.config_file_path).with_name('README.md')
    content = readme.read_text(encoding='utf-8').replace('](docs/', '](')
    files.append(File.generated(config, 'index.md', content=content))
    return files


def on_page_markdown(markdown, **_):
    """Let links to README.md lead there: docs/ is the top of the site."""
    return markdown.replace('](../../README.md', '](../index.md').replace(
        '](../README.md', '](index.md')
