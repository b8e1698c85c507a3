"""``python -m unet_keras.cli``."""

import sys

from unet_keras.cli import main

sys.exit(main())
