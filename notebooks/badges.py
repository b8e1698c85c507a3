"""Let each notebook open and install in Colab, once the project has a public address on GitHub.

python notebooks/badges.py OWNER/NAME            again with another address: the old one gives way

On top comes a badge that opens the notebook, and its first cell of code installs the package from that address.
"""

import json
import re
import sys
from pathlib import Path

COLAB = "https://colab.research.google.com"
BADGE = re.compile(rf"\[!\[Open in Colab\]\({COLAB}/assets/[^)]*\)\]\([^)]*\)\n\n")
INSTALLED = re.compile(r'(%pip install --quiet "unet-keras\[[^]]*\])[^"]*"')


def main(address: str, folder: Path = Path(__file__).parent) -> None:
    """Write the badges and the addresses. Raises ValueError unless the address is OWNER/NAME."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", address):
        raise ValueError(f"The address must be OWNER/NAME, as on GitHub, got {address!r}.")
    for path in sorted(folder.glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        title = notebook["cells"][0]
        page = f"{COLAB}/github/{address}/blob/main/notebooks/{path.name}"
        text = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({page})\n\n" + BADGE.sub(
            "", "".join(title["source"])
        )
        title["source"] = text.splitlines(keepends=True)
        for cell in (cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
            source = INSTALLED.sub(rf'\1 @ git+https://github.com/{address}"', "".join(cell["source"]))
            cell["source"] = source.splitlines(keepends=True)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:2] or [""])
