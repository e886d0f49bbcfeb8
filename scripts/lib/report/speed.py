"""What `snakemake speed` has measured: results/MODEL/speed/HOST.json, and a page of all hosts."""

from pathlib import Path

from pydantic import BaseModel, ValidationError

from lib.errors import UserError
from lib.record import recipe as recipes
from lib.record.layout import SPEED_PAGE
from lib.report.figures import places
from lib.report.judge import Figure
from lib.report.pages import keep, render
from lib.units import human

TEMPLATE = Path(__file__).parents[2] / "templates/speed.html.j2"
BUSY = 0.1  # share of the cores above which other programs have slowed a form down


class Rate(BaseModel):
    """Tokens a second: the mean of the repetitions, and its error.

    That is their standard deviation, as llama-bench shows it. The standard error of the mean would
    be smaller than what separate runs differ by (docs/speed.md).
    """

    mean: float
    error: float

    def __str__(self) -> str:
        digits = places([Figure(self.mean, self.error)], 2)[0]
        return f"{self.mean:,.{digits}f} ± {self.error:,.{digits}f}"


class Machine(BaseModel):
    """A machine. cpu, gpus: names. cores: physical ones. memory: bytes."""

    cpu: str
    cores: int
    gpus: list[str]
    memory: int

    def __str__(self) -> str:
        return ", ".join([f"{self.cpu}, {self.cores} cores", human(self.memory), *self.gpus])


class Conditions(BaseModel):
    """On what a figure depends beside the form.

    command: the program that measures, and its own options, such as how its engine is compiled.
    threads: of the engine.
    """

    engine: str
    command: list[str]
    cpu: str
    gpus: list[str]
    threads: int
    prompt_tokens: int
    text_tokens: int
    repetitions: int


class Measured(BaseModel):
    """The speed of one form.

    file, bytes, sha256 (hex): of the form. measured: when, ISO 8601. backend: of the engine, such
    as CPU or CUDA. busy: the share of the cores that other programs used meanwhile.
    """

    file: str
    bytes: int
    sha256: str
    measured: str
    backend: str
    busy: float
    conditions: Conditions
    prompt: Rate
    text: Rate

    @property
    def is_of_todays_file(self) -> bool:
        """Whether the file is still the one that was measured."""
        record = recipes.read(self.file)
        return record is not None and record.sha256 == self.sha256

    @property
    def how(self) -> str:
        """How it was measured, in words."""
        given = self.conditions
        lengths = f"{given.prompt_tokens} and {given.text_tokens} tokens"
        engine = f"{given.engine} ({self.backend}), {given.threads} threads"
        return f"{engine}; {lengths}, {given.repetitions} times each."

    @property
    def disturbance(self) -> str:
        """What has made the figures too low, in words; empty if nothing has."""
        return f"others used {self.busy:.0%} of the cores" if self.busy > BUSY else ""


class Host(BaseModel):
    """What was measured on one host.

    host: its name, and which GPUs could be seen if that is not all. forms: {form: its speed}.
    """

    host: str
    machine: Machine
    forms: dict[str, Measured] = {}

    @property
    def notes(self) -> list[str]:
        """Lines: how its forms were measured, and which of them on a busy machine."""
        ways: dict[str, list[str]] = {}
        for name, form in self.forms.items():
            ways.setdefault(form.how, []).append(name)
        lines = [f"{', '.join(names)}: {how}" for how, names in ways.items()]
        lines = lines if len(ways) > 1 else list(ways)
        busy = {name: form.disturbance for name, form in self.forms.items() if form.disturbance}
        return [*lines, *(f"{name} is too low: {what}." for name, what in busy.items())]


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
    hosts = map(read, sorted(folder.glob("*.json")))
    keep(page, _page(folder.parent.name, [host for host in hosts if host.forms]))
    return page


def _page(model: str, hosts: list[Host]) -> str:
    """The page: a row for each form, from the smallest to the largest."""
    sizes = {name: form.bytes for host in hosts for name, form in host.forms.items()}
    return render(
        TEMPLATE.read_text(encoding="utf-8"),
        model=model,
        hosts=hosts,
        rows=[(name, human(sizes[name])) for name in sorted(sizes, key=sizes.get)],
    )
