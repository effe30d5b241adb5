"""What pip is told on this machine, read from its documented files and variables: it need not be installed."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from fedsa.errors import UserError

__all__ = ["pip_config_files", "pip_settings"]


def pip_settings() -> dict[str, str]:
    """Return pip's options for a download by their long names; a later file, section or variable wins.

    Raises:
        UserError: one of pip's configuration files cannot be read.
    """
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, "download": {}}
    for file in pip_config_files(sys.platform, os.environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="locale")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise UserError(f"cannot read pip's configuration file {file}: {error}") from error
        for section in sections.keys() & set(parser.sections()):
            sections[section] |= {_option(key): value for key, value in parser.items(section)}
    variables = {_option(key[4:]): value for key, value in os.environ.items() if key.startswith("PIP_")}
    settings: dict[str, str] = {}
    for options in (*sections.values(), variables):
        settings |= {key: value for key, value in options.items() if value}
    return settings


def pip_config_files(platform: str, environ: Mapping[str, str]) -> list[Path]:
    """Return the files that pip reads its configuration from, whether they exist or not, the strongest last.

    Source: pip's documentation, topics/configuration, and pip/_internal/configuration.py.
    """
    home, prefix = Path.home(), Path(sys.prefix)
    if platform == "win32":
        shared = [Path(environ.get("PROGRAMDATA") or "C:/ProgramData") / "pip"]
        user = [home / "pip", Path(environ.get("APPDATA") or home / "AppData" / "Roaming") / "pip"]
    elif platform == "darwin":
        shared = [Path("/Library/Application Support/pip")]
        library = home / "Library" / "Application Support" / "pip"
        user = [home / ".pip", library if library.is_dir() else home / ".config" / "pip"]
    else:
        folders = (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
        shared = [*(Path(folder) / "pip" for folder in folders), Path("/etc")]
        user = [home / ".pip", Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip"]
    chosen = environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return []
    if chosen and Path(chosen).exists():
        user = []
    name = "pip.ini" if platform == "win32" else "pip.conf"
    return [*(folder / name for folder in (*shared, *user, prefix)), *([Path(chosen)] if chosen else [])]


def _option(key: str) -> str:
    return key.lower().replace("_", "-").removeprefix("--")
