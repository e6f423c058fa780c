"""argparse in the house's manners: errors as UsageError, and the nearest word for one misspelt."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import NoReturn

from aipc.errors import UsageError


class CommandParser(argparse.ArgumentParser):
    """Parses the words after `aipc NAME`; options may stand anywhere between the others."""

    def __init__(self, name: str, line: str) -> None:
        super().__init__(prog=f"aipc {name}", description=f"{line[0].upper()}{line[1:]}.", allow_abbrev=False)
        self.add_argument("--verbose", action="store_true", help="show the traceback of an error as well")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments in `words`.

        raises   UsageError, SystemExit after --help
        """
        args, surplus = self.parse_known_intermixed_args(words)
        if surplus:
            kind = "option" if surplus[0].startswith("-") else "argument"
            raise unknown_word(
                kind, surplus[0], self._option_string_actions, help_command=f"{self.prog} --help"
            )
        return args

    def error(self, message: str) -> NoReturn:
        """What argparse calls when words do not fit.

        raises   UsageError, always
        """
        raise UsageError(message, hint=f"{self.prog} --help shows what is possible")


def unknown_word(kind: str, word: str, known: Iterable[str], help_command: str) -> UsageError:
    """The error for a word that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(word.partition("=")[0], list(known), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return UsageError(f"there is no {kind} {word!r}", hint=f"{hint}{help_command} shows what is possible")
