"""A certificate whose time is over, made by the openssl of this machine."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

from pipeline.core.errors import EnvironmentProblem

_CONFIG = """\
[ca]
default_ca = here
[here]
database = {folder}/index.txt
serial = {folder}/serial
new_certs_dir = {folder}
default_md = sha256
policy = any
unique_subject = no
x509_extensions = names
[any]
commonName = supplied
[names]
subjectAltName = IP:127.0.0.1,DNS:localhost
"""


def expired_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, that was good for a day of 2020, and its key; both PEM. Raises
    EnvironmentProblem where there is no openssl."""
    if shutil.which("openssl") is None:
        raise EnvironmentProblem("there is no openssl to make an expired certificate; install the package openssl")
    config, key, asked = folder / "expired.cnf", folder / "expired.key", folder / "expired.csr"
    certificate = folder / "expired.pem"
    config.write_text(_CONFIG.format(folder=folder))
    (folder / "index.txt").write_text("")
    (folder / "serial").write_text("01\n")
    _openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=127.0.0.1",
        "-keyout", key, "-out", asked,
    )  # fmt: skip
    _openssl(
        "ca", "-batch", "-selfsign", "-config", config, "-keyfile", key, "-in", asked, "-out", certificate, "-notext",
        "-startdate", "20200101000000Z", "-enddate", "20200102000000Z",
    )  # fmt: skip
    return certificate, key


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
