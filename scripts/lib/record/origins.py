"""The inputs of a report or a card, and the records of the artifacts that they were made from.

An intermediate artifact (a merge, a conversion, base logits) may have been deleted; its record
stays. Such a record is trusted only if an input was made from its recipe, because another config
may have built the same path since.
"""

from lib.record import recipe as recipes
from lib.record.recipe import Record
from lib.record.wanted import WantedRecipe


class Origins:
    """The inputs of a report or a card, from its wanted recipe, and the records behind them.

    inputs: {role: path}. digests: sha256 (hex) of the recipes that the inputs should have.
    """

    def __init__(self, wanted: WantedRecipe):
        self.inputs = {role: path for role, (path, _) in wanted.inputs.items()}
        self.digests = {digest for _, digest in wanted.inputs.values()}
        self._known = set(self.digests)
        for path in self.inputs.values():
            self.record(path)

    def record(self, path: str) -> Record | None:
        """The record of an input, or of an artifact behind an input; None for any other path.

        Ask for artifacts in order, from the inputs back: a record is known only after the record
        of an artifact that was made from it.
        """
        record = recipes.read(path)
        if record is None or not any(map(record.fits, self._known)):
            return None
        self._known |= set(record.recipe["inputs"].values())
        return record

    def inputs_in(self, role: str) -> dict[str, str]:
        """{NAME: path} of the inputs whose role is `role NAME`, such as `form Q8_0`."""
        prefix = f"{role} "
        return {r.removeprefix(prefix): p for r, p in self.inputs.items() if r.startswith(prefix)}
