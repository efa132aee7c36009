"""The plugin in host repositories of every kind: what is collected, what is said, what is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import install, node_ids, rows

import parity

SUITE = "parity/suites/test_torch_casadi.py"
LINEAR, DAG = f"{SUITE}::test_case[reference-Linear-0-0]", f"{SUITE}::test_case[reference-dag-0-0]"
ONLY = "--parity-path=torch-casadi"
SHORT = ("--parity-cases=1", "-k", "Linear-0-0 or dag-0-0 or own")
"""Two shipped cases, and whatever test of the host is called own."""
OWN = """
import pytest

@pytest.mark.parity
def test_own():
    pass

def test_plain():
    pass
"""
OFF = """
import casadi
import parity

@parity.converter("torch", "casadi")
def off(model, example, *, scale=1.001):
    f = parity.convert(model, "casadi", example)
    x = casadi.SX.sym("x", *f.size_in(0))
    return casadi.Function("f", [x], [scale * f(x) + 1])
"""
FRAMEWORKS = {"torch", "tensorflow", "casadi", "pandas", "numpy", "scipy", "jinja2", "itables"}


# --- without --parity -------------------------------------------------------------------------------------------------


def test_the_plugin_imports_no_framework():
    code = f"import sys, parity, parity.plugin; print({FRAMEWORKS} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_a_run_without_the_flag_imports_no_framework(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(OWN)
    pytester.makeconftest(f"import sys\ndef pytest_unconfigure(): print('imported:', {FRAMEWORKS} & set(sys.modules))")
    result = pytester.runpytest_subprocess("-p", "parity.plugin")
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(["imported: set()"])


@pytest.mark.parametrize("arguments", [(), ("-q",), ("-m", "parity or not parity"), (LINEAR, "test_host.py")])
def test_parity_tests_are_deselected_with_a_line(pytester, run, arguments):
    pytester.makepyfile(test_host=OWN)
    result = run(*arguments)
    count = 1 + (LINEAR in arguments)
    result.assert_outcomes(passed=1, deselected=count)
    result.stdout.fnmatch_lines([f"{count} parity test(s) deselected: run them with --parity"])


def test_the_line_is_also_there_under_xdist(pytester):
    pytester.makepyfile(test_host=OWN)
    result = pytester.runpytest_subprocess("-n2")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["1 parity test(s) deselected: run them with --parity"])


def test_nothing_is_said_where_there_is_no_parity_test(pytester, run):
    pytester.makepyfile("def test_plain(): pass")
    result = run()
    result.stdout.no_fnmatch_line("*deselected*")
    assert not (pytester.path / "reports").exists()


# --- the shipped suites, under the settings of others -----------------------------------------------------------------

HOSTS = {
    "names": ("python_files = check_*.py test_host.py\npython_functions = check_* test_own\npython_classes = C", ()),
    "testpaths, importlib": ("testpaths = .\naddopts = --import-mode=importlib", ()),
    "strict": ("filterwarnings = error\naddopts = --strict-markers --strict-config\nxfail_strict = true", ()),
    "warnings are errors": ("", ("-W", "error", "--import-mode=append")),
    "less": ("", ("-p", "no:benchmark", "-p", "no:cacheprovider", "-p", "no:xdist")),
    "doctests": ("addopts = --doctest-modules --doctest-glob=*.md", ("--ff",)),
    "ignoring": ("norecursedirs = *\nempty_parameter_set_mark = fail_at_collect", ("-m", "parity", "--stepwise")),
    "a folder named": ("", (".", "--keep-duplicates", "--junitxml=junit.xml")),
}


@pytest.mark.parametrize(("ini", "arguments"), HOSTS.values(), ids=HOSTS)
def test_the_shipped_suites_run_besides_the_hosts_own(pytester, run_parity, ini, arguments):
    pytester.makeini(f"[pytest]\n{ini}\n")
    pytester.makepyfile(test_host=OWN)
    result = run_parity("-v", *SHORT, *arguments)
    ids = [line.split(" ")[0] for line in result.outlines if " PASSED " in line]
    assert sorted(ids) == sorted([LINEAR, DAG, "test_host.py::test_own"])
    result.assert_outcomes(passed=3, deselected=result.parseoutcomes()["deselected"])
    assert len(rows(pytester.path / "report")) == 18


def test_host_fixtures_and_hooks_do_not_get_in_the_way(pytester, run_parity):
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(autouse=True)
        def elsewhere(tmp_path, monkeypatch):
            monkeypatch.chdir(tmp_path)

        def pytest_pycollect_makemodule(module_path, parent):
            return pytest.Module.from_parent(parent, path=module_path)
        """
    )
    result = run_parity(*SHORT)
    result.assert_outcomes(passed=2, deselected=result.parseoutcomes()["deselected"])
    assert len(rows(pytester.path / "report")) == 18


def test_in_an_empty_folder_and_below_the_root(pytester, run_parity, monkeypatch):
    pytester.makeini("[pytest]")
    monkeypatch.chdir(pytester.mkdir("below"))
    assert node_ids(run_parity("--co", "-q", *SHORT)) == [LINEAR, DAG]
    assert node_ids(run_parity("--co", "-q", f"../{DAG}")) == [DAG]


def test_a_virtual_environment_inside_the_root(pytester, monkeypatch):
    site = pytester.path / ".venv/lib/python3/site-packages"
    shutil.copytree(Path(parity.__file__).parent, site / "parity", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(Path(__file__).parents[1] / "suites", site / "parity/suites", dirs_exist_ok=True)
    (pytester.path / ".venv/pyvenv.cfg").touch()
    monkeypatch.setenv("PYTHONPATH", str(site))
    pytester.makepyfile(test_host=OWN)
    for named in (), (DAG, "test_host.py::test_own"):
        result = pytester.runpytest_subprocess("--parity", ONLY, "--co", "-q", "-p", "no:randomly", *SHORT, *named)
        assert set(node_ids(result)) == {"test_host.py::test_own", DAG} | ({LINEAR} if not named else set())


def test_a_printed_id_can_be_pasted_back(pytester, run_parity):
    pytester.makepyfile(test_host=OWN)
    run_parity(DAG).assert_outcomes(passed=1)
    assert node_ids(run_parity("--co", "-q", DAG, "--deselect", LINEAR)) == [DAG]
    assert node_ids(run_parity("--co", "-q", *SHORT, "--deselect", LINEAR)) == ["test_host.py::test_own", DAG]
    assert node_ids(run_parity("--co", "-q", *SHORT, f"--deselect={LINEAR}")) == ["test_host.py::test_own", DAG]
    assert set(node_ids(run_parity("--co", "-q", SUITE, "--parity-cases=1", "-k", "Linear-0-0 or own"))) == {LINEAR}


def test_a_file_of_the_host_runs_alone(pytester, run_parity):
    pytester.makepyfile(test_host=OWN, test_other="def test_other(): pass")
    run_parity("test_host.py").assert_outcomes(passed=2)
    run_parity("test_host.py::test_own").assert_outcomes(passed=1)


def test_last_failed_runs_shipped_and_host_failures_again(pytester, run_parity):
    pytester.makeconftest(OFF)
    pytester.makepyfile(test_host="def test_own(): assert False\ndef test_plain(): pass")
    failing = f"{SUITE}::test_case[off-Linear-0-0]"
    first = run_parity("--parity-cases=1", "-k", "Linear-0-0 or own or plain")
    first.assert_outcomes(passed=2, failed=2, deselected=first.parseoutcomes()["deselected"])
    assert set(node_ids(run_parity("--lf", "--co", "-q", "--parity-cases=1"))) == {failing, "test_host.py::test_own"}


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_and_their_ini_equivalents(pytester, run):
    pytester.makeconftest(OFF)
    given = run("--parity", "--co", "--parity-cases=2", "--parity-seed=7", "--parity-converter=off",
                "--parity-path=torch→casadi", "--parity-timeout=0", "-k", "dag")  # fmt: skip
    given.stdout.fnmatch_lines(["parity: seed 7", "parity: torch-casadi by off", "*test_case[[]off-dag-7-1[]]*"])
    given.stdout.no_fnmatch_line("*dag-7-2*")
    pytester.makeini(
        "[pytest]\nparity_cases = 2\nparity_seed = 7\nparity_converter = off\nparity_path = torch-casadi\n"
        "parity_timeout = 0\nparity_report = here"
    )
    listed = run("--parity", "--co", "-k", "dag")
    assert [line for line in listed.outlines if "test_case" in line or line.startswith("parity: ")] == [
        line for line in given.outlines if "test_case" in line or line.startswith("parity: ")
    ]
    run("--parity", "-k", "dag-7-0").assert_outcomes(failed=1, deselected=listed.parseoutcomes()["deselected"] + 1)
    assert {(row.case, row.seed, row.verdict) for row in rows(pytester.path / "here")} >= {("dag-7-0", 7, "fail")}


def test_the_header_names_converters_once(pytester, run):
    pytester.makeconftest(OFF)
    result = run("--parity", "--co", "--parity-path=torch-casadi,torch-casadi", "--parity-path=torch-casadi")
    assert result.outlines.count("parity: torch-casadi by reference, off") == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    {
        "--parity-path=keras-tflite": "unknown path 'keras-tflite': one of torch-casadi*",
        "--parity-converter=other": "no converter is named 'other': *reference*",
        "--parity-cases=many": "--parity-cases takes a number from 0 on, not 'many'",
        "--parity-seed=-1": "--parity-seed takes a number from 0 on, not '-1'",
        "--parity-timeout=nan": "--parity-timeout takes a number from 0 on, not 'nan'",
        "--parity-report=test_host.py": "cannot write the report to *test_host.py: File exists; choose another folder",
        "--parity-report=test_host.py/a": "cannot write the report to *: Not a directory; choose another folder",
        "--parity-report=/proc/a": "cannot write the report to /proc/a: No such file or directory; *",
    }.items(),
)
def test_bad_options_are_one_line(pytester, run, argument, message):
    pytester.makepyfile(test_host=OWN)
    result = run("--parity", argument)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])
    assert len([line for line in result.errlines if line]) == 1
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_missing_package_is_one_line_with_the_command_that_installs_it(pytester, run, monkeypatch):
    pytester.makepyfile(test_host=OWN)
    monkeypatch.setitem(sys.modules, "casadi", None)
    result = run("--parity")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert [line for line in result.errlines if line] == [
        "ERROR: path torch-casadi needs casadi: pip install 'pytest-parity[casadi]'"
    ]
    run().assert_outcomes(passed=1, deselected=1)


def test_a_path_that_cannot_run_is_shown_and_skipped(pytester, run, monkeypatch):
    from parity import paths

    other = paths.Path("torch-nowhere", packages=("no_such_package",), extra="nowhere")
    monkeypatch.setattr(paths, "PATHS", (*paths.PATHS, other))
    pytester.makepyfile(
        test_host="""
        import pytest

        @pytest.mark.parity(path="torch-nowhere")
        def test_own(parity_case, parity_chain): pass

        @pytest.mark.parity(path="torch-nowhere")
        def test_without_cases(): assert False
        """
    )
    needs = "torch-nowhere cannot run here: it needs no_such_package: pip install 'pytest-parity?nowhere?'"
    result = run("--parity", "--parity-report=report", "-rs", "test_host.py")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(
        [f"parity: {needs}", "*= parity =*", needs, "0 checks of 0 cases: none ran", "SKIPPED*"]
    )
    assert "no_such_package" in (pytester.path / "report/index.html").read_text(encoding="utf-8")


def test_an_installed_converter_that_cannot_be_imported_is_shown(pytester, tmp_path, monkeypatch):
    install(tmp_path, "broken_converters", "raise ImportError('two\\nlines')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    line = "converters of entry point 'broken_converters' cannot be loaded: ImportError: two lines"
    result = pytester.runpytest_subprocess("--parity", ONLY, "--parity-report=report", "-p", "no:randomly", LINEAR)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["parity: torch-casadi by reference", f"parity: {line}", "*= parity =*", line])
    assert line.replace("'", "&#39;") in (pytester.path / "report/index.html").read_text(encoding="utf-8")
