"""What the program's own source never does."""

import ast
from pathlib import Path

import pytest
import yaml

from mlmx import stage

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "mlmx").rglob("*.py"))

# Modules that read pickles, or run text.
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "pty", "code"}
# Calls that do, by the name they are called by.
CALLS = {
    "eval", "exec", "compile", "torch.load", "torch.save", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load",
    "yaml.load_all", "pd.read_pickle", "pandas.read_pickle", "dist.all_gather_object", "dist.broadcast_object_list",
    "dist.gather_object", "dist.scatter_object_list", "dist.send_object_list", "dist.recv_object_list",
}  # fmt: skip
ALLOWED = {("stage.py", "yaml.load")}  # with a safe loader; see below


def offences(source, name):
    """Yield (line, what) for everything in a source that could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in CALLS or (called == "yaml.load" and (name, called) not in ALLOWED):
                yield node.lineno, called
            if keywords.get("shell", "False") != "False" or keywords.get("allow_pickle", "False") != "False":
                yield node.lineno, ast.unparse(node)
            if called.endswith("from_pretrained") and keywords.get("trust_remote_code") == "True":
                yield node.lineno, ast.unparse(node)


def test_nothing_that_is_read_is_run():
    assert len(SOURCES) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in SOURCES
        for line, what in offences(path.read_text("utf-8"), path.name)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "torch.load(path)", "np.load(path, allow_pickle=True)", "yaml.load(text)",
        "eval(text)", "exec(text)", "subprocess.run(line, shell=True)", "yaml.unsafe_load(text)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)", "dist.all_gather_object(values, value)",
    ],
)  # fmt: skip
def test_the_search_finds(line):
    assert list(offences(line, "x.py"))


def test_stage_configs_are_read_safely():
    assert issubclass(stage._Loader, (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.system [exit]", Loader=stage._Loader)


def test_every_model_is_loaded_from_safetensors():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("from_pretrained"):
                owner = ast.unparse(node.func)
                if "Tokenizer" not in owner and "Config" not in owner:
                    assert "ONLY_SAFETENSORS" in ast.unparse(node), f"{path}:{node.lineno}"
