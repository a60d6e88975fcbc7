"""`python -m customized_grpo` is the `cgrpo` command, for launchers that start a module, such as torchrun."""

import sys

from customized_grpo.cli.main import main

sys.exit(main())
