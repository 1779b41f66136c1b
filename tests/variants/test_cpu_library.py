"""How the fused CPU kernels come to be compiled, and which file is trusted to be them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import variants
from tests import ROOT
from variants.cpu import library

pytestmark = pytest.mark.skipif(bool(variants.why_unavailable("cpu_fused")), reason="nothing to compile with")
TINY = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture(autouse=True)
def quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and in place of the kernels something that is compiled in no time."""
    source = tmp_path / "tiny.cpp"
    source.write_text(TINY)
    monkeypatch.setattr(library, "_SOURCE", source)
    monkeypatch.setattr(library, "_FLAGS", ("-shared", "-fPIC", "-fopenmp"))
    monkeypatch.setattr(library, "_private_folder", functools.cache(library._private_folder.__wrapped__))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)


def answer(path: Path) -> int:
    return library._loaded(path).answer()


def cached(folder: Path) -> list[str]:
    """What lies in the cache but for the lock."""
    return sorted(f.name for f in folder.iterdir() if f.name != "cpu_fused.lock")


def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    compile_ = library._compile

    def counted(command, source, target):
        made.append(source.name)
        return compile_(command, source, target)

    monkeypatch.setattr(library, "_compile", counted)
    return made


def test_eight_first_calls_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, folder = compilations(monkeypatch), library._cache_folder()
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: library._built(folder), range(8)))
    assert made == ["tiny.cpp"]
    assert [f"{p.name}" for p in paths] == cached(folder)
    assert answer(paths.pop()) == 42
    assert folder.stat().st_mode & 0o777 == 0o700


def test_another_source_flag_compiler_or_processor_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = library._cache_folder()
    names = {library._built(folder).name.rpartition("-")[0]}
    with monkeypatch.context() as patch:
        patch.setattr(library, "_FLAGS", (*library._FLAGS, "-DANOTHER"))
        names.add(library._built(folder).name.rpartition("-")[0])
    with monkeypatch.context() as patch:
        patch.setattr(library, "_processor", lambda: b"another")
        names.add(library._built(folder).name.rpartition("-")[0])
    with monkeypatch.context() as patch:
        patch.setenv("CXX", f"{library._command()[0]} -DMINE")
        names.add(library._built(folder).name.rpartition("-")[0])
    library._SOURCE.write_text(TINY.replace("42", "43"))
    names.add(library._built(folder).name.rpartition("-")[0])
    assert len(names) == 5


@pytest.mark.parametrize("damage", ["empty", "half", "one byte"])
def test_a_damaged_library_is_made_again(damage: str) -> None:
    folder = library._cache_folder()
    path = library._built(folder)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "one byte": whole[:-1] + b"\1"}[damage])
    assert library._cached(folder) is None
    assert library._built(folder) == path
    assert path.read_bytes() == whole
    assert answer(path) == 42


def test_a_library_that_others_may_write_is_none() -> None:
    folder = library._cache_folder()
    path = library._built(folder)
    path.chmod(0o722)
    assert library._cached(folder) is None
    assert library._built(folder) == path
    assert path.stat().st_mode & 0o777 == 0o700
    elsewhere = path.rename(folder.parent / "elsewhere.so")
    path.symlink_to(elsewhere)
    assert library._cached(folder) is None


@pytest.mark.parametrize("where", ["folder", "parent"])
def test_a_folder_that_others_may_write_is_left_alone(where: str) -> None:
    folder = library._cache_folder()
    library._built(folder)
    (folder if where == "folder" else folder.parent).chmod(0o777)
    with pytest.warns(UserWarning, match=r"may be written by other users \(mode 777\): its kernels are compiled for"):
        private = library._cache_folder()
    assert private != folder
    assert private.stat().st_mode & 0o777 == 0o700
    assert library._cached(private) is None
    assert library._cache_folder() == private, "one for the process"
    if where == "parent":
        folder.parent.chmod(0o1777)  # sticky: nobody renames what is another's
        assert library._cache_folder() == folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_left_alone() -> None:
    folder = library._cache_folder()
    os.chown(folder, 12345, -1)
    with pytest.warns(UserWarning, match="another user's"):
        assert library._cache_folder() != folder


def test_without_a_home_or_a_folder_to_write_it_makes_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be made"):
        first = library._cache_folder()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.warns(UserWarning, match="no home folder"):
        second = library._cache_folder()
    assert first.is_dir()
    assert second.is_dir()
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: (_ for _ in ()).throw(FileNotFoundError("no usable folder")))
    library._private_folder.cache_clear()
    (reason,) = library.library_reasons()
    assert reason.startswith("cache folder: one that only this user may write is required, no home folder")


def test_a_cached_library_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    path = library._built(library._cache_folder())
    for broken in ("no-such-compiler", "/bin/false"):
        monkeypatch.setenv("CXX", broken)
        assert variants.why_unavailable("cpu_fused") == []
        assert library._cached(path.parent) == path


@pytest.mark.parametrize(
    ("cxx", "words"),
    [
        ("no-such-compiler", r"no-such-compiler \(or CXX\) is required at run time, none was found"),
        ("/bin/false", "one that runs is required, /bin/false was found"),
        ("/bin/true", "/bin/true was found, which is none"),
        ("g++ --no-such-option", "one that runs is required, .*no-such-option"),
    ],
)
def test_a_compiler_that_is_none_is_a_reason(cxx: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(library.LibraryError, match=words):
        library._compiler_hash(library._command())
    (reason,) = variants.why_unavailable("cpu_fused")
    assert reason.startswith("C++ compiler: ")
    assert cached(library._cache_folder()) == []


def test_no_compiler_at_all_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "g++ or clang++ (or CXX) is required" in variants.why_unavailable("cpu_fused")[0]


def test_the_compiler_may_be_several_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``ccache g++``."""
    wrapper = tmp_path / "my cache"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/log"\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{wrapper}' {Path(library._command()[0]).name}")
    assert variants.why_unavailable("cpu_fused") == []
    assert answer(library._built(library._cache_folder())) == 42
    assert "tiny.cpp" in (tmp_path / "log").read_text()


def test_a_folder_whose_files_do_not_load_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one on a file system that is mounted noexec."""

    def refuse(path: str) -> None:
        raise OSError(f"{path}: failed to map segment from shared object")

    monkeypatch.setattr(library.ctypes, "CDLL", refuse)
    (reason,) = variants.why_unavailable("cpu_fused")
    assert "whose files may be executed is required" in reason
    assert "failed to map segment" in reason


def test_our_own_error_is_raised_and_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = library._cache_folder()
    (folder / "unfinished-by-a-killed-process").mkdir()
    library._SOURCE.write_text("this is no C++")
    assert variants.why_unavailable("cpu_fused") == []
    with pytest.raises(RuntimeError, match=r"could not compile tiny.cpp[\s\S]*error"):
        library._built(folder)
    assert cached(folder) == []


def test_a_private_folder_goes_with_its_process(tmp_path: Path) -> None:
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from variants.cpu import library\n"
        "folder = library._cache_folder(); print(folder); (folder / 'x').write_text('')"
    )
    environment = os.environ | {"XDG_CACHE_HOME": os.devnull, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder.parent == tmp_path
    assert not folder.exists()
