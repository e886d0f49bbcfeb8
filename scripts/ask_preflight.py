"""Find what would make this build fail later: all problems at once, in seconds.

Checks the sources of the models, their corpora, whether the models of a merge fit together, the
files of the user's own, and the repositories that the models are published to. The hub is asked
about everything that is not in the local cache; of models, config.json and tokenizer.json are
downloaded. Prints a table with a line for each check: its state (ok, note or problem), its subject,
and a sentence; problems come last. Exit status 1 if there is a problem.
"""

import ast
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_session, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import hf_raise_for_status

from lib.config.checks import is_demo, is_gguf_file
from lib.config.repositories import repositories
from lib.config.schema import LlamaCpp
from lib.errors import UserError, program, shown
from lib.formats import soundness
from lib.formats.merge_references import merge_references
from lib.formats.model_files import model_files
from lib.formats.moe_architectures import config_of
from lib.formats.weights import layer_ranges
from lib.hub import client as hub
from lib.hub.hubref import parse
from lib.hub.lock import LOCK_FILE, HubSource
from lib.hub.references import beside, leaves
from lib.record.interpreter import installed_versions
from lib.record.tools import CONVERTER, bundled_tree, own_tool
from lib.run.answers import columns, open_session, parser
from lib.run.session import Session
from lib.stages import cold, convert, moe, similarity, studies
from lib.stages.checked import SHAPE, Inspector, Row
from lib.stages.environments import FILES, deciding
from lib.units import count

# What models call the number of their layers in config.json.
LAYERS = ("num_hidden_layers", "n_layers", "n_layer")
# Set in the converter's classes of architectures whose layers for MTP it can convert alone.
FLAG = "supports_mtp_export"


class Preflight(Inspector):
    """The checks of one config. Each gives rows of the table.

    names: the models to check. Those that this run does not choose (`--config model=…`) are checked
    only as far as merges need them. cuda: whether there is a GPU; None if that is not known.
    publish: whether the repositories to publish to are checked too.
    """

    def __init__(
        self, session: Session, names: list[str], cuda: bool | None, publish: bool
    ) -> None:
        self.cuda, self.lock, self.api = cuda, session.graph.lock, HfApi()
        self.skipped = session.options.skip
        sections = dict.fromkeys(self.skipped)  # no model has these
        given = session.config.models.items()
        self.models = {name: model.model_copy(update=sections) for name, model in given}
        self.whole = session.config.model_copy(update={"models": self.models})
        self.names = names
        entries = self.whole.entries
        self.chosen = {name: entries[name] for name in names if name in session.graph.names}
        self.publish = publish
        self.architectures = architectures(self.whole.llama_cpp, "TEXT_MODEL_MAP")
        self.projectors = architectures(self.whole.llama_cpp, "MMPROJ_MODEL_MAP")

    @cached_property
    def drafts(self) -> set[str] | None:
        """As Inspector says. All of the converter's code is read for it."""
        return drafts(self.whole.llama_cpp)

    def run(self) -> list[Row]:
        """All rows of the table. The checks that ask the hub run in parallel."""
        # Sorted: of a model that is wanted with pickles and without, the former stays.
        found = [*leaves(self.whole, self.names), *beside(self.whole, self.chosen)]
        sources = dict(sorted(found))
        texts = set().union(*(model.corpora() for model in self.chosen.values()))
        checks: list[Callable[[], Row]] = [
            *(partial(self.source, reference, pickle) for reference, pickle in sources.items()),
            *(partial(self.corpus, name) for name in self.whole.corpora if name in texts),
            *(partial(self.target, name) for name in self.targets()),
        ]
        with ThreadPoolExecutor(8) as pool:
            rows = list(pool.map(lambda check: check(), checks))
        for name in self.names:
            rows += self.partners(name)
            if name in self.models:
                rows += moe.preflight(self, name, self.models[name])
        for name, model in self.chosen.items():
            for family in model.families():
                rows += family.preflight(self, name, model)
            if name in self.whole.studies:
                rows += (row for parent in model.parents for row in convert.preflight(self, parent))
                rows += studies.preflight(self, name, model)
            elif model.similarity is not None:
                rows += similarity.preflight(self, name, model)
        rows += [Row("config", "note", text) for text in cold.nowhere(self.whole)]
        return rows + [self.interpreter(*named) for named in self.whole.environments.items()]

    def targets(self) -> list[str]:
        """The repositories that the models are published to, as org/name, each once."""
        found = (each for model in self.chosen.values() for each in repositories(model))
        names = (each.name for each in found if each.family not in self.skipped)
        return list(dict.fromkeys(names)) if self.publish else []

    # sources

    def source(self, reference: str, pickle: bool) -> Row:
        """The row of a model from outside. That a local one is whole is checked with the config."""
        if parse(reference):
            return self.locked(reference, HubSource(reference))
        if is_demo(reference):
            return Row(reference, "ok", "made by this build")
        if is_gguf_file(reference):
            return Row(reference, "ok", "a GGUF file")
        return Row(reference, "ok", count(len(model_files(Path(reference), pickle)), "file"))

    def locked(self, subject: str, source: HubSource) -> Row:
        """Whether a source from the hub is in the lock, and cached or open to this login."""
        if self.lock.missing([source]):
            return Row(subject, "problem", f"not in {LOCK_FILE}; run `snakemake lock`")
        entry = self.lock.get(source.ref, source.kind)
        names = [source.file] if source.file else entry.files
        absent = [name for name in names if hub.cached(entry, name) is None]
        if not absent:
            return Row(subject, "ok", f"cached, commit {entry.commit[:12]}")
        size = sum(entry.files[name].size for name in absent)
        try:
            self.api.auth_check(entry.repo, repo_type=entry.kind)
        except Exception as error:  # noqa: BLE001 - told in one line, whatever it is
            return Row(subject, "problem", hub.explain(error, entry.repo, entry.kind, self.api))
        return Row(subject, "ok", f"to be fetched: {size / 1e9:.2f} GB")

    def interpreter(self, name: str, python: str) -> Row:
        """The row of the user's own interpreter for a tool: which versions are not the tested."""
        pins = deciding(FILES / f"{name}.txt")
        _, there = installed_versions(python, tuple(pins))
        differing = [f"{p} {there[p]} (tested: {pins[p]})" for p in pins if there[p] != pins[p]]
        text = (
            f"{python}: {', '.join(differing)}; recipes tell what it has" if differing else python
        )
        return Row(f"environments.{name}", "note" if differing else "ok", text)

    def corpus(self, name: str) -> Row:
        """The row of a text. That a local one is there is checked with the config."""
        corpus, subject = self.whole.corpora[name], f"corpus {name}"
        if corpus.path:
            return Row(subject, "ok", "made by this build" if is_demo(corpus.path) else corpus.path)
        if corpus.hub:
            return self.locked(subject, HubSource(corpus.reference(), "dataset", corpus.file))
        return self.url(subject, corpus.url, corpus.sha256)

    def url(self, subject: str, url: str, sha256: str) -> Row:
        """Whether a download is cached under its sha256, or can be reached."""
        if hub.cached_url(sha256).exists():
            return Row(subject, "ok", "cached")
        try:
            with get_session().stream("GET", url, follow_redirects=True) as response:
                hf_raise_for_status(response)
        except HfHubHTTPError as error:
            return Row(subject, "problem", f"{url}: the server says {error.response.status_code}")
        except (HTTPError, OSError) as error:
            return Row(subject, "problem", f"{url}: cannot be reached ({hub.one_line(error)})")
        return Row(subject, "ok", "to be fetched")

    # publishing

    def target(self, repo: str) -> Row:
        """Whether this login may write to a repository, or create it where it does not exist."""
        subject = f"publish {repo}"
        if constants.HF_HUB_OFFLINE:
            return Row(subject, "note", "not checked: HF_HUB_OFFLINE is set")
        try:
            self.api.auth_check(repo, write=True)
            return Row(subject, "ok", "is there and can be written")
        except RepositoryNotFoundError:
            pass
        except Exception as error:  # noqa: BLE001 - told in one line, whatever it is
            return Row(subject, "problem", hub.explain(error, repo, "model", self.api, write=True))
        try:
            who = self.api.whoami(cache=True)
        except Exception:  # noqa: BLE001 - hub.login says why
            return Row(subject, "problem", f"no right to write there; {hub.login(self.api)}")
        space = repo.split("/")[0]
        orgs = {o["name"] for o in who.get("orgs") or [] if o.get("roleInOrg") != "read"}
        role = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
        if space not in {who["name"], *orgs} or role == "read":
            token = "; this token may only read" if role == "read" else ""
            text = f"no right to make it under {space}; {hub.login(self.api)}{token}"
            return Row(subject, "problem", text)
        return Row(subject, "ok", "will be made")

    # what the models are

    def config(self, reference: str) -> dict | None:
        """As Inspector says; with the keys of `text_config`, which multimodal models have."""
        if reference in self.models:
            model = self.models[reference]
            base = self.config(model.parts()[0])
            if base and model.moe:
                return config_of(model.moe, base)
            if base and model.merge and (model.merge.get("slices") or model.merge.get("modules")):
                return {key: value for key, value in base.items() if key not in LAYERS}
            return base
        found = self.document(reference, "config.json")
        if found is None or soundness.config_fault(found):
            return None
        return {**(found.get("text_config") or {}), **found}

    def document(self, reference: str, name: str) -> dict | None:
        """A JSON file of a source; None if it cannot be had or is not JSON."""
        path = self.file(reference, name)
        try:
            found = soundness.document(path) if path else None
        except (UserError, OSError):
            return None  # the step that reads it says so
        return found if isinstance(found, dict) else None

    def file(self, reference: str, name: str) -> Path | None:
        """The path of a small file of a source, fetched if it is not cached, or None."""
        if parse(reference) is None:
            path = Path(reference, name)
            return path if path.is_file() else None
        entry = self.lock.get(reference)
        if entry is None or name not in entry.files:
            return None
        if path := hub.cached(entry, name):
            return path
        try:
            return Path(hf_hub_download(entry.repo, name, revision=entry.commit))
        except Exception:  # noqa: BLE001 - `source` has told why
            return None

    def partners(self, name: str) -> Iterator[Row]:
        """Rows: whether the models of a merge have the same shape and the same vocabulary.

        Those of a study are about all its merges.
        """
        entry = self.whole.entries[name]
        found: dict[Row, None] = {}
        for merge in entry.merges:
            found |= dict.fromkeys(self.partners_in(name, merge))
        bad = [row for row in found if row.state == "problem"]
        yield from bad or list(found)[:1]

    def partners_in(self, name: str, merge: dict[str, Any]) -> Iterator[Row]:
        """Rows: as `partners`, of one merge."""
        parts = (part for reference in merge_references(merge) for part in reference.parts)
        first, *rest = dict.fromkeys(parts)
        base = self.config(first)
        if base is None:
            return
        adapters = {part for ref in merge_references(merge) for part in ref.parts[1:]}
        others = [part for part in rest if part not in adapters]
        sliced = merge.get("slices") or merge.get("merge_method") == "passthrough"
        has_tokenizer = bool(merge.get("tokenizer_source") or merge.get("tokenizer"))
        may_differ = {"num_hidden_layers": sliced, "vocab_size": has_tokenizer}
        keys = [key for key in (*SHAPE, "vocab_size") if not may_differ.get(key)]
        problems = []
        for other in others:
            config = self.config(other)
            if config is None:
                continue
            for key in keys:
                if key in base and key in config and base[key] != config[key]:
                    hint = "; give tokenizer_source" if key == "vocab_size" else ""
                    text = f"{key} is {config[key]} in {other}, {base[key]} in {first}{hint}"
                    problems.append(text)
            compared = not has_tokenizer and base.get("vocab_size") == config.get("vocab_size")
            if compared and (clash := self.clash(first, other)):
                problems.append(f"{clash}; give tokenizer_source")
        yield from (Row(name, "problem", text) for text in problems)
        if not problems:
            yield Row(name, "ok", f"its {len(others) + 1} models fit together")

    def clash(self, one: str, other: str) -> str | None:
        """A token id that means different tokens in two models, in words; None if there is none."""
        first, second = self.vocabulary(one), self.vocabulary(other)
        both = first.keys() & second.keys() if first and second else set()
        differing = [index for index in both if first[index] != second[index]]
        if not differing:
            return None
        index = min(differing)
        return (
            f"the vocabularies differ in {count(len(differing), 'token')}: "
            f"{index} is {first[index]!r} in {one}, {second[index]!r} in {other}"
        )

    def vocabulary(self, reference: str) -> dict[int, str] | None:
        """{token id: token} of a model's tokenizer.json; None if it has none."""
        while reference in self.models:
            reference = self.models[reference].parts()[0]
        document = self.document(reference, "tokenizer.json")
        if document is None:
            return None
        try:
            vocabulary = (document.get("model") or {}).get("vocab") or {}
            if isinstance(vocabulary, dict):
                found = {number: token for token, number in vocabulary.items()}
            else:
                found = dict(enumerate(token for token, *_ in vocabulary))
            return found | {t["id"]: t["content"] for t in document.get("added_tokens") or []}
        except (AttributeError, KeyError, TypeError, ValueError):
            return None  # no tokenizer that is known here

    def fits(
        self, name: str, subject: str, text: str, layers: int | None, columns: int | None
    ) -> Row:
        """As Inspector says."""
        width = (self.config(name) or {}).get("hidden_size")
        for found, wanted, words in (
            (layers, self.layers(name), "layers"),
            (columns, width, "columns"),
        ):
            if None not in (found, wanted) and found != wanted:
                return Row(subject, "problem", f"{text}: {found} {words}, the model has {wanted}")
        return Row(subject, "ok", text)

    def layers(self, name: str) -> int | None:
        """As Inspector says. A merge of slices has the sum of their layers."""
        try:
            if slices := (self.models[name].merge or {}).get("slices"):
                return sum(last - first for first, last in layer_ranges(slices))
        except (KeyError, TypeError, ValueError, IndexError):
            return None  # the step looks at the model itself
        config = self.config(name) or {}
        return next((config[key] for key in LAYERS if isinstance(config.get(key), int)), None)


def architectures(wanted: LlamaCpp, table: str) -> set[str] | None:
    """The architectures that convert_hf_to_gguf.py knows; None if there is no converter yet.

    table: the dict of its package `conversion` that has them.
    """
    try:
        text = (conversion(wanted) / "__init__.py").read_text(encoding="utf-8")
    except (UserError, OSError):
        return None
    for node in ast.parse(text).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == table:
            return set(ast.literal_eval(node.value))
    return None


def conversion(wanted: LlamaCpp) -> Path:
    """The converter's package. Raises UserError if there is no llama.cpp yet."""
    directory = Path("resources/llama.cpp")
    if not directory.is_dir():
        own = own_tool(wanted.path, CONVERTER) if wanted.path else None
        directory = own.parent if own else bundled_tree()
    return directory / "conversion"


def drafts(wanted: LlamaCpp) -> set[str] | None:
    """The architectures that have `--mtp` in convert_hf_to_gguf.py; None if there is none yet.

    They are the names for which classes are registered that set, or inherit, FLAG.
    """
    try:
        files = [file.read_text(encoding="utf-8") for file in conversion(wanted).glob("*.py")]
    except (UserError, OSError):
        return None
    nodes = (node for text in files for node in ast.parse(text).body)
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}

    def able(name: str) -> bool:
        if name not in classes:
            return False
        for line in classes[name].body:
            if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == FLAG:
                return ast.unparse(line.value) == "True"
        return any(able(ast.unparse(base)) for base in classes[name].bases)

    marks = (mark for name in classes if able(name) for mark in classes[name].decorator_list)
    calls = (mark for mark in marks if "register(" in ast.unparse(mark))
    return {ast.literal_eval(word) for call in calls for word in call.args} or None


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--models", metavar="NAME,…", help="only these models (default: all that are chosen)"
    )
    options.add_argument(
        "--cluster",
        action="store_true",
        help="jobs run on other machines: do not check whether this one has a GPU",
    )
    options.add_argument(
        "--no-publish", action="store_true", help="do not check the repositories to publish to"
    )
    arguments = options.parse_args()
    session = open_session(arguments.config)
    names = arguments.models.split(",") if arguments.models else session.graph.names
    if unknown := [name for name in names if name not in session.config.entries]:
        raise UserError(f"--models: {', '.join(unknown)} is no model of this config")
    cuda = None if arguments.cluster else shutil.which("nvidia-smi") is not None
    rows = Preflight(session, names, cuda, not arguments.no_publish).run()
    order = ("ok", "note", "problem")  # problems last, where they are seen
    rows.sort(key=lambda row: order.index(row.state))
    cells = ((row.state, row.subject, shown(" ".join(row.text.split()))) for row in rows)
    print("\n".join(columns(cells, indent="")))
    if problems := sum(row.state == "problem" for row in rows):
        raise UserError(count(problems, "problem"))


if __name__ == "__main__":
    program(main)
