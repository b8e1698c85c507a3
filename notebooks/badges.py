"""Put a badge that opens each notebook in Colab on top of it, once the project has a public address on GitHub.

python notebooks/badges.py OWNER/NAME            again with another address: the old badges give way
"""

import json
import re
import sys
from pathlib import Path

COLAB = "https://colab.research.google.com"
BADGE = re.compile(rf"\[!\[Open in Colab\]\({COLAB}/assets/[^)]*\)\]\([^)]*\)\n\n")


def main(address: str, folder: Path = Path(__file__).parent) -> None:
    """Write the badges. Raises ValueError unless the address is OWNER/NAME."""
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
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:2] or [""])
