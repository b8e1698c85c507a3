"""The command line: ``unet-keras train``, ``sample``, ``explore``, ``export``, ``convert`` and ``presets``."""

import argparse
import sys

from unet_keras.cli import convert, explore, export, presets, sample, train

COMMANDS = {
    "train": train, "sample": sample, "explore": explore, "export": export, "convert": convert, "presets": presets,
}  # fmt: skip


def main(argv=None) -> int:
    """Run the command line; returns the exit status. What is wrong with the input is told in one line."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"unet-keras: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """Describe the commands and their options."""
    top = argparse.ArgumentParser(prog="unet-keras", description=__doc__)
    commands = top.add_subparsers(required=True, metavar=" | ".join(COMMANDS))
    for name, command in COMMANDS.items():
        layout = {"formatter_class": argparse.RawDescriptionHelpFormatter, "description": command.EXAMPLES}
        command.add_options(commands.add_parser(name, help=command.__doc__.splitlines()[0], **layout))
    return top
