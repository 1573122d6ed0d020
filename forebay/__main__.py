"""`python -m forebay` is the command `forebay`."""

import sys

from forebay.cli import main

sys.exit(main())
