"""The dashboard's page: built from its lock file, small, whole, and in what is installed."""

import gzip
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tests.functional.built_page import FRONTEND, ROOT, done

pytestmark = pytest.mark.deep

MOST_BYTES = 120 * 1024
BUILD = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"


def test_its_own_tests_pass(frontend: Path) -> None:
    said = done("npm", "test", "--silent", cwd=frontend)
    assert re.search(r"Tests.*passed", said)


def test_lock_file_names_no_registry() -> None:
    assert '"resolved"' not in (FRONTEND / "package-lock.json").read_text()


def test_first_visit_is_small(page: Path) -> None:
    html = page / "index.html"
    named = re.findall(r'(?:src|href)="([^"]+\.(?:js|css))"', html.read_text())
    files = [html, *(page / name for name in named)]
    assert len(files) == 3
    script = next(it for it in files if it.suffix == ".js").read_text()
    # What it fetches at once would count, too.
    assert not re.search(r"\bfrom ?[\"']\./|^import ?[\"']\./", script)
    assert sum(len(gzip.compress(file.read_bytes(), 9)) for file in files) <= MOST_BYTES


def test_everything_it_names_is_there_and_nothing_is_elsewhere(page: Path) -> None:
    html = (page / "index.html").read_text()
    named = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert len(named) >= 3
    for name in named:
        assert name.startswith("./"), name
        assert (page / name).is_file(), name
    # What a strict content security policy refuses.
    assert re.findall(r"<script(?![^>]*\bsrc=)", html) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=", html) == []


def test_licences_of_what_is_bundled_go_along(page: Path) -> None:
    text = (page / "licenses.txt").read_text()
    for package in ("react", "react-dom", "uplot"):
        assert re.search(rf"^{package} [\d.]+ \(", text, re.MULTILINE), package


def test_sources_set_no_html_and_run_no_text() -> None:
    for path in (FRONTEND / "src").rglob("*.ts*"):
        assert not re.search(r"dangerouslySetInnerHTML|innerHTML|\beval\(", path.read_text()), path


def test_wheel_has_the_page_and_not_its_sources(page: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "node_modules", "page")
    shutil.copytree(ROOT / "moe_megatron", source / "moe_megatron", ignore=ignored)
    shutil.copytree(page, source / "moe_megatron" / "webapp" / "page")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    wheel = source / done(sys.executable, "-c", BUILD, cwd=source).splitlines()[-1]
    names = [n for n in zipfile.ZipFile(wheel).namelist() if "/webapp/" in n]
    built = {p.relative_to(page).as_posix() for p in page.rglob("*") if p.is_file()}
    assert {n.partition("/page/")[2] for n in names if "/page/" in n} == built
    assert [n for n in names if "/frontend/" in n] == []
