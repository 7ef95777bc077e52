"""Settings in YAML, where 1e-3 is a number."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: YAML 1.1, which PyYAML reads, takes 1e-3 for a word."""


_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float',
    re.compile(r'[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$'),
    list('-+.0123456789'),
)


def load_settings(text: str) -> Any:
    """Return what YAML text says.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, _Loader)
