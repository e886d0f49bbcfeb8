"""The repositories of the hub to which a model of the config is published."""

from dataclasses import dataclass
from typing import Any

from lib.stages.registry import FAMILIES

FORM = "{form}"  # in a repository's name: a repository for each form


@dataclass(frozen=True)
class Repository:
    """A repository with forms of one family.

    name: org/name. form: the only form that it holds (5.0bpw); None: it holds all of them.
    """

    family: str
    name: str
    form: str | None = None

    def card(self, model: str) -> str:
        """The path of its card: results/MODEL/README.FAMILY.md, or README.FAMILY.FORM.md."""
        own = f"{self.family}.{self.form}" if self.form else self.family
        return f"results/{model}/README.{own}.md"


def repositories(model: Any) -> list[Repository]:
    """The repositories of a model of the config (schema.Model); none if it is not published."""
    found = []
    for family in FAMILIES.values() if model.publish else ():
        name = getattr(model.publish, family.name, None)
        if name and FORM in name:
            forms = family.names(model) if family.own(model) else ()
            for form in forms:
                own = name.replace(FORM, family.repository_form(model, form))
                found.append(Repository(family.name, own, form))
        elif name:
            found.append(Repository(family.name, name))
    return found
