"""`python -m metrics.dashboards [FOLDER]`: writes the dashboards as JSON, beside this file unless told otherwise."""

import sys
from pathlib import Path

from metrics.dashboards.files import rendered

HERE = Path(__file__).resolve().parent


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in rendered().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
