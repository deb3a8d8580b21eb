"""`python -m schoolhouse` is `school`."""

import sys

from schoolhouse.cli.main import main

sys.exit(main())
