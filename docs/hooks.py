"""Pages of the site that lie outside of this folder: what was measured."""

from pathlib import Path

from mkdocs.structure.files import File

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def on_files(files, config):
    """Add the pages and pictures of benchmarks/."""
    for path in sorted(BENCHMARKS.iterdir()):
        if path.suffix in (".md", ".png", ".csv"):
            files.append(File.generated(config, f"benchmarks/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links that lead there from here, and from there to here."""
    if page.file.src_uri.startswith("benchmarks/"):
        return markdown
    return markdown.replace("](../benchmarks/", "](benchmarks/")
