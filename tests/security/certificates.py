"""Certificates for tests: an authority, and what it signs for names, SPIFFE ids and keys, by `openssl`."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import grpc

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """Signs certificates in a directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.run("req", "-x509", *_KEY, "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt")
        # What a reference names is for its owner alone.
        (folder / "ca.crt").chmod(0o600)

    def run(self, *arguments: str) -> bytes:
        """Run openssl in the directory."""
        return subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True).stdout

    def read(self, name: str) -> bytes:
        """Read a file of the directory."""
        return (self.folder / name).read_bytes()

    def issue(self, name: str, names: str, *, key: str = "") -> grpc.ServerCredentials:
        """Issue a certificate, `NAME.crt`, for names as openssl writes them, with a new key or that of another."""
        (self.folder / "san").write_text(f"subjectAltName={names}")
        used = ["-new", "-key", f"{key}.key"] if key else [*_KEY, "-keyout", f"{name}.key"]
        self.run("req", *used, "-subj", "/CN=somebody", "-out", f"{name}.csr")
        signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san"]
        self.run("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")
        return grpc.ssl_server_credentials([(self.read(f"{key or name}.key"), self.read(f"{name}.crt"))])

    def identity(self, name: str) -> str:
        """The identity that a certificate without a SPIFFE id stands for, as openssl sees its key."""
        key = self.run("x509", "-in", f"{name}.crt", "-pubkey", "-noout")
        (self.folder / "key.pem").write_bytes(key)
        der = self.run("pkey", "-pubin", "-in", "key.pem", "-outform", "DER")
        return "sha256:" + hashlib.sha256(der).hexdigest()
