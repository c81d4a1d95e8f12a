"""The option --database of the commands around a dashboard, which all of them describe alike."""

import argparse


def add_database(parser: argparse.ArgumentParser, says: str, *, required: bool = True) -> None:
    """Add the option.

    Args:
        parser: Of the command.
        says: What the command finds in the database.
        required: Whether it must be given.
    """
    parser.add_argument(
        "--database",
        required=required,
        metavar="FILE",
        help=f"{says}: a file, or postgresql+psycopg://USER@HOST/NAME",
    )
