"""Certificates for tests, made by the openssl of this machine: one authority, servers and clients that it signs."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Authority:
    """`issue` gives a certificate and its key, both PEM files in the folder."""

    folder: Path
    name: str = "ca"

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.name}.pem"

    def issue(self, name: str, *subject_names: str) -> tuple[Path, Path]:
        """`subject_names` as openssl writes them: DNS:…, IP:…, URI:…."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request, extension = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extension.write_text(f"subjectAltName={','.join(subject_names)}\n")
        _openssl(
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            f"/CN={name}",
            "-keyout",
            key,
            "-out",
            request,
        )
        _openssl(
            "x509", "-req", "-in", request, "-days", "2", "-CA", self.certificate,
            "-CAkey", self.folder / f"{self.name}.key", "-CAcreateserial", "-extfile", extension, "-out", certificate,
        )  # fmt: skip
        return certificate, key


def make_authority(folder: Path, name: str = "ca") -> Authority:
    """Skips the test where there is no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl")
    made = Authority(folder, name)
    _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", f"/CN={name}",
        "-keyout", folder / f"{name}.key", "-out", made.certificate,
    )  # fmt: skip
    return made


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
