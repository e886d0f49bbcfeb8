"""Reads JSON files that users write or name."""

import json
from pathlib import Path
from typing import Any

from lib.errors import UserError


def read_json(path: Path) -> Any:
    """The document in a JSON file. Raises UserError if it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
