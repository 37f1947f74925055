"""Import the SDK and every generated module: fails where an installed library is too old for them."""

import importlib
import importlib.metadata
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    sys.path.insert(0, str(ROOT))
    stubs = sorted(f"headrace.v1.{path.stem}" for path in (ROOT / "headrace" / "v1").glob("*_pb2*.py"))
    if not stubs:
        sys.exit(f"no generated modules in {ROOT / 'headrace' / 'v1'}; run: make generate")
    for name in ["headrace", "headrace.testing.running", "headrace.testing.sharded", *stubs]:
        importlib.import_module(name)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("protobuf", "grpcio", "pydantic"))
    print(f"headrace and {len(stubs)} generated modules import with {versions}")


if __name__ == "__main__":
    main()
