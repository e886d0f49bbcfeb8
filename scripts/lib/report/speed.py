"""What `snakemake speed` has measured: results/MODEL/speed/HOST.json, and a page of all hosts."""

import os
from pathlib import Path

import jinja2
from pydantic import BaseModel, ValidationError

from lib.errors import UserError
from lib.record import recipe as recipes
from lib.record.layout import SPEED_PAGE
from lib.report.figures import places
from lib.report.judge import Figure
from lib.units import human

TEMPLATE = Path(__file__).parents[2] / "templates/speed.html.j2"
BUSY = 0.1  # share of the cores above which other programs have slowed a form down


class Rate(BaseModel):
    """Tokens a second: the mean of the repetitions, and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        digits = places([Figure(self.mean, self.error)], 2)[0]
        return f"{self.mean:,.{digits}f} ± {self.error:,.{digits}f}"


class Conditions(BaseModel):
    """On what a figure depends beside the form. cpu, gpus: names. threads: of the engine."""

    engine: str
    cpu: str
    gpus: list[str]
    threads: int
    prompt_tokens: int
    text_tokens: int
    repetitions: int

    def __str__(self) -> str:
        on = ", ".join(self.gpus) or "no GPU"
        lengths = f"{self.prompt_tokens} and {self.text_tokens} tokens, {self.repetitions} times"
        return f"{self.engine}, {self.threads} threads of {self.cpu}, {on}; {lengths}"


class Measured(BaseModel):
    """The speed of one form.

    file, bytes, sha256 (hex): of the form. at: the time, ISO 8601. busy: the share of the cores
    that other programs used meanwhile.
    """

    file: str
    bytes: int
    sha256: str
    at: str
    busy: float
    conditions: Conditions
    prompt: Rate
    text: Rate

    @property
    def is_of_todays_file(self) -> bool:
        """Whether the file is still the one that was measured."""
        record = recipes.read(self.file)
        return record is not None and record.sha256 == self.sha256


class Host(BaseModel):
    """What was measured on one host. cores: physical ones. memory: bytes. forms: {form: speed}."""

    host: str
    cpu: str
    cores: int
    gpus: list[str]
    memory: int
    forms: dict[str, Measured] = {}

    @property
    def machine(self) -> str:
        """The machine in words."""
        return ", ".join([f"{self.cpu}, {self.cores} cores", human(self.memory), *self.gpus])

    @property
    def notes(self) -> list[str]:
        """Lines: under which conditions its forms were measured, and which on a busy machine."""
        lines = list(dict.fromkeys(str(form.conditions) for form in self.forms.values()))
        busy = [f"{name} ({f.busy:.0%})" for name, f in self.forms.items() if f.busy > BUSY]
        text = f"Too low, because other programs used the cores meanwhile: {', '.join(busy)}."
        return [*lines, text] if busy else lines


def read(file: Path) -> Host:
    """A HOST.json without the forms whose file has changed since.

    Raises UserError if it is not one.
    """
    try:
        host = Host.model_validate_json(file.read_bytes())
    except ValidationError:
        raise UserError(f"{file}: `snakemake speed` did not write it; move it away") from None
    host.forms = {name: form for name, form in host.forms.items() if form.is_of_todays_file}
    return host


def write(folder: Path, name: str, host: Host) -> Path:
    """Write what a host has measured of a model, NAME.json, and the page; its path is returned."""
    recipes.write_json(folder / f"{name}.json", host.model_dump())
    page = folder / SPEED_PAGE
    part = page.with_name(f".{page.name}.{os.getpid()}.part")
    hosts = map(read, sorted(folder.glob("*.json")))
    part.write_text(_page(folder.parent.name, [host for host in hosts if host.forms]), "utf-8")
    part.replace(page)
    return page


def _page(model: str, hosts: list[Host]) -> str:
    """The page: a row for each form, from the smallest to the largest."""
    sizes = {name: form.bytes for host in hosts for name, form in host.forms.items()}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        model=model,
        hosts=hosts,
        rows=[(name, human(sizes[name])) for name in sorted(sizes, key=sizes.get)],
    )
