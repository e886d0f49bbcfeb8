"""What the tests share: the workflow's modules, llama.cpp's tools, and one built project.

Tests work on copies of the project.
"""

import copy
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
for place in (ROOT / "scripts", ROOT / "tests"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from project import CONFIG, Project, command_line, copy_workflow, snakemake  # noqa: E402
from traces import STRACE, traced  # noqa: E402

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets its background jobs ignore Ctrl-C, and their children inherit that: Ctrl-C could
    # not be tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Else each of the thousands of programs that the tests start compiles the workflow's modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The files that take minutes, the longest first: else one worker has nothing to do at the end.
# test_moe trains the demo, at its end; the file beside it then needs none.
LONGEST = (
    *("test_companions", "test_moe", "test_cold", "test_slurm", "test_study_build"),
    *("test_compressed_tensors", "test_inputs", "test_campaign", "test_cold_on_hub"),
    *("test_speed", "test_accept"),
    *("test_own_files", "test_interrupted", "test_code", "test_extract_lora", "test_harness"),
    *("test_steps", "test_answers", "test_mlx", "test_bytes", "test_audit", "test_contract"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="module", autouse=True)
def own_environment() -> Iterator[None]:
    """What a file's tests leave in the environment (HF_HUB_OFFLINE) does not reach another's."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """resources/llama.cpp, made by the workflow's own rule: compiled if the cache has none yet."""
    here = tmp_path_factory.mktemp("toolchain")
    done = snakemake(here, "resources/llama.cpp", timeout=3600)
    assert done.returncode == 0, done.stdout
    return here / "resources/llama.cpp"


@pytest.fixture(scope="session")
def llama_bin(request: pytest.FixtureRequest) -> Path:
    """The directory of llama.cpp's tools: $QUANTMILL_TOOLS, or those that the workflow compiles."""
    if own := os.environ.get("QUANTMILL_TOOLS"):
        return Path(own)
    return request.getfixturevalue("toolchain") / "bin"


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A directory that `make` makes, once for all workers of pytest-xdist."""
    top = factory.getbasetemp()
    top = top.parent if "PYTEST_XDIST_WORKER" in os.environ else top
    here, done = top / name, top / f"{name}.done"
    with open(top / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(here, ignore_errors=True)
            here.mkdir()
            make(here)
            done.touch()
    return here


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project of project.py, built from nothing. Tests work on copies of it."""
    here = once(tmp_path_factory, "project", lambda here: Project.create(here).build())
    return Project(here, copy.deepcopy(CONFIG))


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    """A copy of the built project, as `cp -a` makes it."""
    return built.copy(tmp_path / "project")


@pytest.fixture
def edited(project, tmp_path) -> Project:
    """The built project with a copy of the workflow of its own, to edit."""
    project.repository = copy_workflow(tmp_path / "workflow")
    return project


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """resources/demo of the embedded default, which takes minutes to train.

    $QUANTMILL_DEMO may name one that is there.
    """
    if own := os.environ.get("QUANTMILL_DEMO"):
        return Path(own)

    def train(here: Path) -> None:
        (here / "work").mkdir()
        models = [f"resources/demo/{name}" for name in ("base", "code", "prose")]
        workflow = traced(here / "workflow", here / "trace") if STRACE else ROOT
        command = [*command_line(here / "work", workflow), *models]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout

    return once(tmp_path_factory, "default", train) / "work/resources/demo"


@pytest.fixture
def demo_trace(demo: Path) -> tuple[Path, Path]:
    """Where the demo was trained, and the trace of it."""
    if "QUANTMILL_DEMO" in os.environ:
        pytest.skip("the demo was trained before (QUANTMILL_DEMO)")
    return demo.parent.parent, demo.parent.parent.parent / "trace"


@pytest.fixture
def git(monkeypatch: pytest.MonkeyPatch):
    """Run git in a directory, as somebody, without the machine's own settings."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)

    def run(where: Path, *words: str) -> None:
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *who, *words], cwd=where, check=True, capture_output=True)

    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium that logs its console and its requests."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver (Debian: chromium-driver) are not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    session = webdriver.Chrome(options=options, service=service)
    yield session
    session.quit()
