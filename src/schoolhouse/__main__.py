"""`python -m schoolhouse` is `school`."""

import sys

from schoolhouse.cli import main

sys.exit(main())
