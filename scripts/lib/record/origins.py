"""What a report or a card may look at: its inputs, and the records of what those were made from.

What is made on the way (a merge, a conversion, base logits) may be reclaimed, its record stays. It
is trusted only where an input was made from its recipe: another config may have built the path
since.
"""

from lib.record import recipe as recipes
from lib.record.recipe import Record
from lib.record.wanted import WantedRecipe


class Origins:
    """Follows from the wanted recipe of a report or a card.

    inputs: {role: path}. digests: of the recipes that these are wanted to have.
    """

    def __init__(self, wanted: WantedRecipe):
        self.inputs = {role: path for role, (path, _) in wanted.inputs.items()}
        self.digests = {digest for _, digest in wanted.inputs.values()}
        self._known = set(self.digests)
        for path in self.inputs.values():
            self.record(path)

    def record(self, path: str) -> Record | None:
        """The record of an input or of what one was made from, however far back; else None."""
        record = recipes.read(path)
        if record is None or not any(map(record.fits, self._known)):
            return None
        self._known |= set(record.recipe["inputs"].values())
        return record

    def inputs_in(self, role: str) -> dict[str, str]:
        """{name: path} of the inputs whose role is `role NAME`."""
        prefix = f"{role} "
        return {r.removeprefix(prefix): p for r, p in self.inputs.items() if r.startswith(prefix)}
