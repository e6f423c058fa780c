"""A text to paste into an issue: versions and checks, without who ran it and where."""

from __future__ import annotations

import getpass
import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from aipc import __version__, cache
from aipc.runtimes import packages

_PACKAGES = ("openvino", "openvino-genai", "numpy", "tokenizers", "huggingface_hub")

_USERS = ("USER", "LOGNAME", "LNAME", "USERNAME", "SUDO_USER")
_HOSTS = ("HOSTNAME", "HOST", "COMPUTERNAME", "USERDOMAIN")

# Shorter names are looked for as whole words: they are part of many others.
_LEAST_CHARACTERS = 4

# An absolute path of POSIX, of Windows, or in a network. A space belongs to it where a later word has a
# separator. Kept are addresses (https://...), and the places where every machine has drivers and firmware.
_END = r"\s'\"<>|;,:"
_DRIVERS = r"/(?:dev|lib/firmware|sys|etc/OpenCL)/"
_PATH = re.compile(
    rf"(?<![\w/.:>])(?!{_DRIVERS})/[^{_END}]+(?: +[^{_END}/]*/[^{_END}]*)*"
    r"|\b[A-Za-z]:[\\/][^'\"<>|;,:\n]*"
    r"|\\\\[^'\"<>|;,:\n]+"
)


def header() -> list[str]:
    """What runs here."""
    versions = {name: _version(name) for name in _PACKAGES} | packages.installed()
    listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return [f"aipc {__version__} · Python {platform.python_version()} · {system}", listed]


def anonymous(text: str) -> str:
    """The text without names of users and hosts, and without paths outside of the cache."""
    text = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    text = text.replace(str(cache.cache_dir()), "<cache>")
    for place in sorted(_places(), key=len, reverse=True):
        text = re.sub(rf"{re.escape(place)}[^'\"<>|;,:\n]*", "<path>", text)
    text = _PATH.sub("<path>", text)
    for stand_in, names in (("<host>", _host_names()), ("<user>", _user_names())):
        for name in sorted(names, key=len, reverse=True):
            pattern = re.escape(name)
            if len(name) < _LEAST_CHARACTERS:
                pattern = rf"(?<!\w){pattern}(?!\w)"
            text = re.sub(pattern, stand_in, text, flags=re.IGNORECASE)
    return text


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _places() -> set[str]:
    """Folders of this user that may have spaces in their names: what the environment and Python know."""
    known = [str(Path.cwd()), str(Path.home()), sys.prefix, sys.base_prefix, *sys.path]
    known += [part for value in os.environ.values() for part in value.split(os.pathsep)]
    return {
        place
        for place in known
        if len(place) > 1 and Path(place).is_absolute() and not re.match(_DRIVERS, f"{place}/")
    }


def _user_names() -> Iterator[str]:
    yield from filter(None, map(os.environ.get, _USERS))
    try:
        yield getpass.getuser()
    except (OSError, KeyError, ImportError):
        return


def _host_names() -> Iterator[str]:
    """Whole, and without the domain."""
    names = [platform.node(), *(os.environ.get(name, "") for name in _HOSTS)]
    for name in filter(None, names):
        yield name
        yield from filter(None, name.split(".")[:1])
