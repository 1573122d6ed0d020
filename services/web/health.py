"""`python -m services.web.health PORT-VARIABLE PATH`: exit status 0 when this machine's server answers PATH with 200.

What images and compose ask as their health check, in place of a curl that they would have to carry.
"""

from __future__ import annotations

import os
import sys
from http.client import HTTPConnection, HTTPException

TIMEOUT = 4.0
"""Seconds; below the time-out that the images give the whole check."""


def main(arguments: list[str]) -> int:
    """The command: 0, or 1 after one sentence on stderr."""
    variable, path = arguments
    port = int(os.environ[variable])
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        sys.stderr.write(f"Nothing answers at port {port}: {error}\n")
        return 1
    finally:
        connection.close()
    if status != 200:
        sys.stderr.write(f"{path} answers {status}.\n")
    return int(status != 200)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
