"""The Debian package, from what `make setup` installed: no network, no debhelper, no interpreter of its own.

Above: `make deb`. Below: the environment that runs this, whose pinned distributions are copied by their own lists of
files, and dpkg-deb. The package is a virtual environment in /opt/behestd over the system's Python of the same minor
version, which it depends on. Compiled modules are in it, since the unit lets the daemon write nowhere beside its data.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from behestd import __version__
from deploy import completions, manuals

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
PREFIX = Path("opt/behestd")
OWN = {"behestd": ROOT, "behest": ROOT / "clients/python"}
"""Distributions of this repository, which are built; the others are copied."""
HEAVY = frozenset({"embeddings"})
"""Extras that are left out: hundreds of megabytes for one small model."""
COPIES = {
    "systemd/behestd.service": "lib/systemd/system/behestd.service",
    "systemd/behestd-proxy.socket": "lib/systemd/system/behestd-proxy.socket",
    "systemd/behestd-proxy.service": "lib/systemd/system/behestd-proxy.service",
    "systemd/behest.sysusers": "usr/lib/sysusers.d/behest.conf",
    "etc/behestd.toml": "etc/behestd/behestd.toml",
    "../LICENSE-APACHE": "usr/share/doc/behestd/LICENSE-APACHE",
    "../LICENSE-MIT": "usr/share/doc/behestd/LICENSE-MIT",
}
"""Files as they are, from here to their places."""
PROGRAMS = {"behestd": "behestd.cli", "behest": "behest.cli"}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PROGRAM = """\
#!/opt/behestd/bin/python3 -I
import sys

from {module} import main

sys.exit(main())
"""


def build(output: Path) -> Path:
    """Build the package into a directory and return its path. Raises CalledProcessError, OSError."""
    output.mkdir(parents=True, exist_ok=True)
    architecture = ARCHITECTURES[platform.machine()]
    package = output / f"behestd_{__version__}_{architecture}.deb"
    with tempfile.TemporaryDirectory(dir=output) as directory:
        root = Path(directory) / "root"
        root.mkdir(mode=0o755)
        _environment(root / PREFIX)
        _files(root)
        _control(root, architecture)
        for path in root.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        # Secrets: nobody may read them between unpacking and postinst.
        (root / "etc/behestd/credentials").chmod(0o700)
        (root / "etc/behestd/behestd.toml").chmod(0o640)
        command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z6", "--build", str(root), str(package)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return package


def _environment(prefix: Path) -> None:
    """Make the virtual environment: pyvenv.cfg, a link to the system's interpreter, modules, programs."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    site = prefix / f"lib/python{version}/site-packages"
    site.mkdir(parents=True)
    bin_directory = prefix / "bin"
    bin_directory.mkdir()
    (bin_directory / "python3").symlink_to(f"/usr/bin/python{version}")
    (prefix / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    for name in sorted(_closure("behestd", frozenset(_extras("behestd")) - HEAVY) | _closure("behest", frozenset())):
        if name in OWN:
            _build(OWN[name], site)
        else:
            _copy(metadata.distribution(name), site)
    for program, module in PROGRAMS.items():
        script = bin_directory / program
        script.write_text(PROGRAM.format(module=module))
        script.chmod(0o755)
    # Unchecked: the sources never change under it, and times of files in a package mean nothing.
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([*command, "-s", str(prefix.parents[1]), "-p", "/", str(site)], check=True)


def _extras(name: str) -> list[str]:
    return metadata.metadata(name).get_all("Provides-Extra") or []


def _closure(name: str, extras: frozenset[str]) -> set[str]:
    """Return the names of a distribution and of everything that it needs, itself with these extras."""
    found: dict[str, frozenset[str]] = {}
    wanted = [(name, extras)]
    while wanted:
        name, extras = wanted.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if name in found and extras <= found[name]:
            continue
        found[name] = extras | found.get(name, frozenset())
        for text in metadata.requires(name) or ():
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *found[name])):
                wanted.append((need.name, frozenset(need.extras)))
    return set(found)


def _copy(distribution: metadata.Distribution, site: Path) -> None:
    """Copy the files of a distribution that lie among the modules; programs and compiled modules are left."""
    for file in distribution.files or ():
        if file.is_absolute() or ".." in file.parts or file.suffix == ".pyc":
            continue
        place = site / file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(distribution.locate_file(file)), place)


def _build(source: Path, site: Path) -> None:
    """Build a distribution of this repository and unpack it."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory]
        subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (wheel,) = Path(directory).glob("*.whl")
        shutil.unpack_archive(wheel, site, "zip")


def _files(root: Path) -> None:
    """Put everything in place that is not Python."""
    for source, target in COPIES.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(DEPLOY / source, root / target)
    (root / "usr/share/doc/behestd/copyright").write_text("License: Apache-2.0 OR MIT, at your choice.\n")
    (root / "etc/behestd/credentials").mkdir()
    (root / "usr/bin").mkdir()
    for program in PROGRAMS:
        (root / "usr/bin" / program).symlink_to(f"/{PREFIX}/bin/{program}")
    for name, text in manuals.pages().items():
        place = root / f"usr/share/man/man{name.rpartition('.')[2]}" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    for name, text in completions.scripts().items():
        place = root / "usr/share" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def _control(root: Path, architecture: str) -> None:
    size_bytes = sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    control = root / "DEBIAN"
    control.mkdir()
    text = (DEPLOY / "debian/control").read_text()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    filled = text.format(
        version=__version__, architecture=architecture, python=version, size_kib=(size_bytes + 1023) // 1024
    )
    (control / "control").write_text(filled)
    shutil.copyfile(DEPLOY / "debian/conffiles", control / "conffiles")
    for script in ("postinst", "prerm", "postrm"):
        shutil.copyfile(DEPLOY / "debian" / script, control / script)
        (control / script).chmod(0o755)


if __name__ == "__main__":
    sys.stdout.write(f"{build(Path(sys.argv[1]))}\n")
