"""What a run deletes here because another place has it, and what waits for that.

Forms are made, measured and deleted one after the other: the first step of a form waits until the
one two places before it is deleted, so that no more than two are on the disk. Reports and cards
wait for notes, and not for the files. lib/planning/staleness.py says which notes are to be made.
"""

from collections.abc import Collection
from functools import cached_property

from lib.planning.staleness import Plan, State
from lib.record import cold
from lib.record.artifact import Artifact

AT_ONCE = 2  # forms on the disk


class Cooling:
    """What a run deletes.

    on: whether it does, and not only what somebody asks for by name. uploads: paths of what it
    uploads before; then only forms of these go.
    """

    def __init__(self, plan: Plan, on: bool, uploads: Collection[str] = ()):
        self.plan, self.on, self.uploads = plan, on, uploads

    @cached_property
    def _forms(self) -> list[tuple[str, list[Artifact]]]:
        """(path of its first file, the notes that this run makes) of each form that goes."""
        return [
            (form[0].inputs[cold.MADE].path, made)
            for name in self.plan.graph.names
            if self.on and name in self.plan.graph.config.models
            for form in self.plan.graph.cold_notes(name)
            if not self.uploads or any(map(self._is_uploaded, form))
            if (made := [note for note in form if self._is_made(note)])
        ]

    @cached_property
    def _made(self) -> set[str]:
        return {note.path for note in self.notes()}

    def _is_uploaded(self, note: Artifact) -> bool:
        return note.inputs[cold.MADE].path in self.uploads

    @cached_property
    def _waits(self) -> dict[str, list[Artifact]]:
        """{path of the first file of a form: the notes that it waits for}."""
        forms = self._forms
        earlier = [[] for _ in range(AT_ONCE)] + [made for _, made in forms]
        return {path: before for (path, _), before in zip(forms, earlier, strict=False)}

    def _is_made(self, note: Artifact) -> bool:
        asked = not note.on_demand or self._is_uploaded(note)
        return asked and self.plan.state(note) is State.STALE

    def notes(self) -> list[Artifact]:
        """All notes that this run makes."""
        return [note for _, made in self._forms for note in made]

    def after(self, artifact: Artifact) -> list[Artifact]:
        """The notes that an artifact waits for."""
        return self._waits.get(artifact.path, [])

    def goes(self, artifact: Artifact) -> bool:
        """Whether this run deletes an artifact."""
        return self.on and cold.note_of(artifact.path) in self._made

    def read_as(self, reader: Artifact, up: Artifact) -> Artifact | None:
        """What a step waits for where it needs `up`; None: for nothing.

        Reports and cards read the note, and a note comes after what has gone as after what is here.
        """
        if not reader.describes and (reader.rule != cold.RULE or up is reader.inputs[cold.MADE]):
            return up
        if self.goes(up):
            return self.plan.graph.note(up)
        return None if self.plan.stays_away(up) else up

    def awaited(self, artifact: Artifact) -> list[Artifact]:
        """All that a step waits for: what it reads, what it needs besides, what has to go first."""
        found = (self.read_as(artifact, up) for up in artifact.needed)
        return [*filter(None, found), *self.after(artifact)]
