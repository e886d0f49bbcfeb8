"""Which repositories of the hub a model of the config is published to. Pure standard library."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

KINDS = ("gguf", "exl2", "safetensors")
FORM = "{form}"  # in the name of an EXL2 repository: one repository for each bits value


@dataclass(frozen=True)
class Repository:
    """A repository of one kind. form: the only one that it holds (5.0bpw); None: all of its kind."""

    kind: str
    name: str
    form: str | None = None

    def card(self, model: str) -> str:
        """The path of its card: results/MODEL/README.KIND.md, README.exl2.5.0bpw.md for one form."""
        kind = f"{self.kind}.{self.form}" if self.form else self.kind
        return f"results/{model}/README.{kind}.md"


def repositories(model: Any) -> list[Repository]:
    """All repositories of a model of the config (schema.Model)."""
    found = []
    for kind in KINDS if model.publish else ():
        name = getattr(model.publish, kind)
        if name and FORM in name:
            bits = model.exl2.bits if model.exl2 else ()
            found += [Repository(kind, own, form) for form, own in by_form(name, bits).items()]
        elif name:
            found.append(Repository(kind, name))
    return found


def by_form(name: str, bits: Iterable[float]) -> dict[str, str]:
    """{form: repository} of a name with {form} in it."""
    return {form: name.replace(FORM, form) for form in map(exl2_form, bits)}


def exl2_form(bits: float) -> str:
    """What an EXL2 form is called: 5.0bpw."""
    return f"{float(bits)}bpw"
