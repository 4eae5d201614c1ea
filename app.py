"""Start the page: `python app.py [--host --port --workspace --auth --api-key --lang --read-only …]`; the same as
`workbench page`."""

import sys

from workbench.ui.main import main

if __name__ == "__main__":
    sys.exit(main())
